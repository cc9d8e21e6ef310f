"""Campaigns over datasets, seeds and variants, their tables, and the benchmark's datasets.

The layouts of the datasets are in ``kdpl/data/readers/benchmark.py``.
"""
