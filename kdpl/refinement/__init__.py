"""Refined targets: the teacher's predictions corrected by the shape of the unlabelled images."""
