"""The little around training that no library does: whole files, locks, Slurm, loggers."""
