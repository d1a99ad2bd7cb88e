"""Metrics as functions and as torchmetrics classes, usable without the rest of the package."""
