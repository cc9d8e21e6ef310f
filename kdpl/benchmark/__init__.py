"""Campaigns over datasets, seeds and variants by one command, and their tables.

<<<<<<< HEAD
The facts about the benchmark's datasets are in ``kdpl/data/readers/benchmark.py``.
=======
The benchmark's datasets and their layouts are in ``kdpl/data/readers/benchmark.py``.
>>>>>>> 01092f8 (Remove the log of logged W&B steps and what nothing uses)
"""
