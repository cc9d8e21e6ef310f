"""``python -m kdpl demo``: a page in the browser that classifies the images that are dropped on it."""
