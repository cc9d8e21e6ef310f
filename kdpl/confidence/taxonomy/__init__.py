"""Classes in a tree: accuracy at each level, and the deepest node that holds a wanted error."""
