"""Doubt: calibrated probabilities, rejection at a wanted error, prediction sets, and none of the classes."""
