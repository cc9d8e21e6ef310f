"""Disk cache of the teacher's features, for distilling any number of students."""
