"""Weights & Biases and MLflow beyond what Lightning's own loggers do."""
