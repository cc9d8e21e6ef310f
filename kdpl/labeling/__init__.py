"""What to label next, and labels that look wrong."""
