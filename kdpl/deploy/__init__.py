"""Around a finished classifier: finding and decoding images ahead of it, and tables of its answers."""
