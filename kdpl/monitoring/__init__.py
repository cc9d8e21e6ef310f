"""What is watched while a model is trained: its speed, and that loss and weights are finite."""
