"""Frozen chest-radiograph encoders behind one interface, and a small classifier that can be trained here."""
