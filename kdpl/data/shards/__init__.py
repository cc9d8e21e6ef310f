"""Pools in tar shards: their index, and reading them in the order of a training."""
