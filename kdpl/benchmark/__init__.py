"""Campaigns over datasets, seeds and variants by one command, and their tables.

The facts about the benchmark's datasets are in ``kdpl/data/readers/benchmark.py``.
"""
