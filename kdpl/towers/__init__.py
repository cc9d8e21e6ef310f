"""The two towers of a CLIP, taken apart so that prompts can be put between their layers.

They wrap the modules of an ``open_clip.CLIP`` and own no weights of their own. Both are frozen: no parameter of theirs
takes a gradient, unless the whole tower is trained, and ``train()`` cannot flip them.
"""

from kdpl.towers.frozen import Frozen, Trained
from kdpl.towers.image import ImageTower, PromptableImageTower, promptable
from kdpl.towers.text import ArrangedTexts, TextTower

__all__ = ["ArrangedTexts", "Frozen", "ImageTower", "PromptableImageTower", "TextTower", "Trained", "promptable"]
