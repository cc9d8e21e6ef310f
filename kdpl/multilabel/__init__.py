"""Several labels for an image: task, metrics, and thresholds of classes."""
