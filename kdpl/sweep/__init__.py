"""Sweeps: fits that differ in a few settings, by a file that W&B takes as well, without a server."""
