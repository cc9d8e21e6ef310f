"""Classes in a tree: accuracy at each level, and the deepest node that keeps a wanted error."""
