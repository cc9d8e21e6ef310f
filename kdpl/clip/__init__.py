"""open_clip behind one door: models, weights, and the two towers taken apart.

The towers wrap the modules of an ``open_clip.CLIP`` and own no weights of their own. Both are frozen, so that prompts
can be put between their layers: no parameter of theirs takes a gradient, unless the whole tower is trained.
"""
