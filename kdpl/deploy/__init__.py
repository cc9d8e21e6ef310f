"""A finished classifier in use: prediction in bulk, export, the Hugging Face hub, and a demo."""
