"""Experiments: a short file each that says which runs, which figures and which order is expected; a command each.

engine.py trains and measures what is missing, table.py writes the table, its JSON and its picture.
"""
