"""Classifiers and their model cards on the Hugging Face hub."""
