"""Formats of exported files: how to write and run each."""
