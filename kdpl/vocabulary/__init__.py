"""Class vectors of other class names, from a teacher that is tuned already."""
