"""Campaigns: many runs over datasets, seeds and variants by one command, and their tables.

The facts about the benchmark's datasets, where they lie and how they are read, are in ``kdpl/data/readers/benchmark.py``.
"""
