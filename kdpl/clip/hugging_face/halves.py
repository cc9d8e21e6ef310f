"""Image and text halves of an image-text model of transformers."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from kdpl.clip import ImageTower


class _Half(nn.Module):
    """One tower of a model with its projection; it shares the model's weights."""

    is_text = False

    def __init__(self, model: Any) -> None:
        super().__init__()
        # an empty copy of the model gets the modules of one tower
        with torch.device("meta"):
            self.model = type(model)(model.config)
        for name, child in model.named_children():
            setattr(self.model, name, child if name.startswith("text_") == self.is_text else None)
        for name, _ in model.named_parameters(recurse=False):  # scale and bias of logits
            setattr(self.model, name, None)


class ImageHalf(_Half):
    """Image tower, from normalised pixels to features."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] into features [B, embed_dim], not normalised."""
        return _features(self.model.get_image_features(pixel_values=pixels))


class HalfTower(ImageTower):
    """Image tower whose ``visual`` is an ``ImageHalf``."""

    def pooled(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] into features [B, W] before the model's projection."""
        vision = self.visual.model.vision_model
        return cast(Tensor, vision(pixel_values=self._input(images)).pooler_output)

    def drop_projection(self) -> None:
        """Remove the model's projection, see ``ImageTower.drop_projection``."""
        if isinstance(layer := getattr(self.visual.model, "visual_projection", None), nn.Linear):
            self.visual.model.visual_projection = nn.Identity()
            self._say_dropped(layer.in_features)


class TextHalf(_Half):
    """Text tower with the interface of open_clip's for ``kdpl.clip.towers.hugging_face_text``.

    Tokens with the id ``padding`` are masked, except for the first ``ends`` after a text: they are
    its end. With None, a text is read with its padding, as in SigLIP.
    """

    is_text = True

    def __init__(self, model: Any, padding: int | None, ends: int) -> None:
        super().__init__(model)
        self.padding, self.ends = padding, ends

    @property
    def transformer(self) -> "TextHalf":
        """The whole tower, as one block."""
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of tokens."""
        size = self.model.config.text_config.vocab_size
        # there may be other embeddings, such as of positions
        tables = (module for module in self.modules() if isinstance(module, nn.Embedding))
        return next(table for table in tables if table.num_embeddings == size)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode token ids [N, context_length] into features [N, embed_dim], not normalised."""
        mask = None
        if self.padding is not None:
            # the last token that is not padding, and the ends after it
            counts = torch.arange(1, ids.shape[1] + 1, device=ids.device)
            lengths = (counts * (ids != self.padding)).amax(dim=1, keepdim=True) + self.ends
            mask = (counts <= lengths).long()
        return _features(self.model.get_text_features(input_ids=ids, attention_mask=mask))


def _features(output: Any) -> Tensor:
    # transformers 4 returns the features, 5 an output that holds them
    return cast(Tensor, getattr(output, "pooler_output", output))
