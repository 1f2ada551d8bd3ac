"""Measurements of generated images; a file a family, a registry by name (METRICS), the protocols in protocols.py."""
