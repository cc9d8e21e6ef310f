"""A page in the browser that classifies the images dropped on it."""
