"""A short search for what of a student is trained, and how fast, by its fidelity."""
