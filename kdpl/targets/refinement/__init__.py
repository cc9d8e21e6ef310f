"""Predictions corrected by the shape of the unlabelled images, as a target of students."""
