"""A service that classifies images which other programs send, on LitServe."""
