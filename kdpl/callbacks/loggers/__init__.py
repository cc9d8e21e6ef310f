"""Weights & Biases and MLflow loggers that extend Lightning's loggers."""
