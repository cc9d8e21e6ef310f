"""A page in the browser that classifies images dropped on it."""
