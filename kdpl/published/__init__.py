"""The authors' published checkpoints, taken over into run folders."""
