"""Towers other than CLIP's own: EVA, SigLIP, PE-Core, ViTamin, CLIPA, MobileCLIP, BiomedCLIP."""
