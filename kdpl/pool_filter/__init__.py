"""Unlabelled images unlike all classes, which a student does not learn from."""
