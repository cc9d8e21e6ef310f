"""Campaigns over datasets, seeds and variants by one command, and their tables.

The benchmark's datasets and their layouts are in ``kdpl/benchmark/readers.py``.
"""
