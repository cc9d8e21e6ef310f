"""Towers of CLIP, EVA, SigLIP, PE-Core, ViTamin, CLIPA, MobileCLIP and BiomedCLIP."""
