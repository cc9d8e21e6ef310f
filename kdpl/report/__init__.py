"""report.html: one page about a run, for people who did not train it.

It shows what was trained, on what data and how well.
"""
