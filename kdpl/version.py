"""The version of kdpl."""

__version__ = "0.1.0"
