"""Several labels for an image: task, metrics, thresholds of classes, and COCO's annotations."""
