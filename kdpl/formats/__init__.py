"""Exported files of a classifier, which run without kdpl: how each format is written and run."""
