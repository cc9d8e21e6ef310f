"""Photographs of scenes and clothes, and small CLIPs of weights that packages ship."""
