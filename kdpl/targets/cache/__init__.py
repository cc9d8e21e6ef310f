"""A disk cache of the teacher's features, which any number of students is distilled from."""
