"""A service on LitServe that classifies images sent by other programs."""
