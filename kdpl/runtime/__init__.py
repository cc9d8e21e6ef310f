"""Support around training that no library provides: atomic files, locks, loggers."""
