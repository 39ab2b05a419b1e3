"""Metrics of predictions, and significance tests of their differences."""
