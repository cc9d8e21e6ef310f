"""Image-text models of transformers as teachers and students, ``hf:OWNER/NAME`` or ``hf:PATH``.

Code of a repository is never run, and weights are read from safetensors alone.
"""
