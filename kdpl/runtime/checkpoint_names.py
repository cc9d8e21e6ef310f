"""Where a run's checkpoints are; imports no torch."""

FOLDER = "checkpoints"

LAST = f"{FOLDER}/last.ckpt"
"""The newest, which a cut run goes on from."""

PREVIOUS = f"{FOLDER}/previous.ckpt"
"""The one before, kept until the run has come to its end, in case that the newest is damaged."""
