"""The published checkpoints of PromptKD's authors, imported into run folders."""
