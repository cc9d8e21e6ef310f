"""Classifiers and their model cards on the Hugging Face hub."""

from kdpl.classifier.hub.hub import from_pretrained, model_card, push_to_hub, save_pretrained

__all__ = ["from_pretrained", "model_card", "push_to_hub", "save_pretrained"]
