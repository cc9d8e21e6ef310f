"""report.html: one page that shows what was trained, on what data and how well, to people who did not train it."""
