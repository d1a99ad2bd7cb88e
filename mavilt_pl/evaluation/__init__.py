"""Figures with their provenance, and the pages that show them to people."""

from mavilt_pl.evaluation.results_writer import ResultsWriter

__all__ = ["ResultsWriter"]
