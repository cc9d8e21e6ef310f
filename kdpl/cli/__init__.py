"""The commands of ``python -m kdpl``, one file each."""
