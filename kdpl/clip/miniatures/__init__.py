"""Miniature CLIPs, a teacher and two students, for running the pipeline on a laptop offline.

They were pretrained on captioned printed glyphs (digits and letters in matplotlib's fonts), never
on handwriting. In a clone, ``python -m benchmarks.worlds.pretrain`` creates their weights.
"""
