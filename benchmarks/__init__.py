"""Speed and memory relative to a plain implementation of the published procedure, measured in the same run."""
