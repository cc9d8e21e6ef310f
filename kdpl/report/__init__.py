"""report.html: what was trained, on what, and how well, in one file for people who did not train it."""

FILE = "report.html"
"""Name of the file in a run's folder."""
