"""Figures with what made them, and the page that shows them to people."""

from mavilt_pl.evaluation.results import ResultsWriter

__all__ = ["ResultsWriter"]
