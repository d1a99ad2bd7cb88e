"""A local web page for a trained model: report, ask, draw, and its results."""
