"""Figures with what made them, and the page that shows them to people."""
