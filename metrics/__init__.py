"""Measurements of a run's images; a file a family."""
