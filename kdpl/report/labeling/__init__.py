"""Images to label next, and labels that look wrong."""
