"""Metrics for `evaluate.load`, and for whoever imports them."""
