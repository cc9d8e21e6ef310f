"""Weights & Biases logger that extends Lightning's."""
