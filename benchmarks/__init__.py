"""Speed and memory, each as a ratio against a plain implementation of the published procedure in the same run."""
