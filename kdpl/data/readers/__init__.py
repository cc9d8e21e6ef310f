"""Subclasses of ``kdpl.data.splits.Reader``, one file for each kind of source."""
