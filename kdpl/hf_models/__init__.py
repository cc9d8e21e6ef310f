"""Image-text models of transformers as teachers and students: ``hf:OWNER/NAME``, ``hf:PATH``."""
