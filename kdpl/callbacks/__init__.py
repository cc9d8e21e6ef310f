"""Around training: averaging prompts, freezing class vectors, checkpoints, pictures, interruption, measurements."""
