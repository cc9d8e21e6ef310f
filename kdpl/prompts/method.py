"""Prompt methods for a frozen CLIP: their interface and names."""

import json
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from kdpl.clip.clip import ImageClip
from kdpl.clip.modules import Float32Module, normalized, require_tensors
from kdpl.clip.tokens import Tokenizer
from kdpl.clip.towers.image import ImageTower
from kdpl.clip.towers.text import CLASSES_AT_ONCE, ArrangedTexts, TextTower
from kdpl.errors import ConfigError
from kdpl.prompts.text import averaged, flat_texts, prompt_texts, tokenize_prompts
from kdpl.prompts.vision import PromptConfig
from kdpl.runtime.class_names import ClassText
from kdpl.runtime.configs import find_class

_NAMED = {
    "independent": "kdpl.prompts.independent.IndependentPrompts",
    "coupled": "kdpl.prompts.coupled.CoupledPrompts",
}


class PromptMethod(Float32Module):
    """Base of prompt methods: the trained parameters, and the encoding of images and class names.

    This class trains nothing: it encodes as the frozen CLIP does. A subclass overrides what differs
    and creates its parameters in ``__init__``; they and persistent buffers are float32. Under
    DistributedDataParallel each needs a gradient in every step, or ``requires_grad`` False. It
    stores neither ``clip`` nor a tower, which would become part of checkpoints and prompts file;
    each call passes them.

    Both stages predict by the cosine of image and text features times the scale of the CLIP; a
    method that predicts otherwise folds the difference into its features. They may be wider than
    embed_dim if both have the same width; the regularisers ``text`` and ``image`` must then be 0.

    Stage 2 finds the class by its path: define it at the top level of an importable module. The
    four common arguments come first, in this order. Further arguments of ``__init__`` are the
    settings of the method; it keeps each in an attribute of the same name. A subclass of a method
    with settings repeats them, because ``**kwargs`` are not saved. CONTRIBUTING.md has an example.

    Args:
        vision: Size of the visual prompts.
        text: Size of the text prompts.
        context: Words before the class name; None for prompts that start from noise, only for
            methods that learn a context.
        clip: A ``Clip`` in stage 1; in stage 2 its image half alone, without text prompts.
    """

    def __init__(
        self, vision: PromptConfig, text: PromptConfig, context: str | None, clip: ImageClip
    ) -> None:
        super().__init__()
        self.vision_config = vision
        self.text_config = text
        self.context = context

    @property
    def text_is_fixed(self) -> bool:
        """True if the text features are the same in all steps, so they are encoded once."""
        return True

    @property
    def images_are_plain(self) -> bool:
        """True if images are encoded by the tower alone, without prompts."""
        return type(self).encode_images is PromptMethod.encode_images

    def encode_images(self, tower: ImageTower, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S], uint8 or float in [0, 1]; normalised, float32 [B, D]."""
        return normalized(tower(images))

    def arrange(self, names: Sequence[str], tower: TextTower, tokenize: Tokenizer) -> ArrangedTexts:
        """Tokenise C class names for ``encode_texts``; a ConfigError for one that does not fit."""
        texts = prompt_texts(self.context, self.text_config.length, names)
        return tokenize_prompts(tokenize, texts, tower)

    def encode_texts(
        self, tower: TextTower, texts: ArrangedTexts, classes_at_once: int = CLASSES_AT_ONCE
    ) -> Tensor:
        """Encode arranged class names; normalised features, float32 [C, embed_dim].

        Called in steps under the trainer's autocast, and by ``encode_names`` in float32. With
        gradients, ``classes_at_once`` limits the classes whose activations are kept at a time.
        """
        return normalized(tower(texts))

    def custom_loss(
        self,
        images: tuple[ImageTower, Tensor],
        texts: tuple[TextTower, ArrangedTexts],
        classes_at_once: int,
        label_loss: Callable[[Tensor, Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """Return the terms of a loss that replaces PromptSRC's, scalars by name.

        Called only if a subclass overrides it, with labelled images, the class names to tune on, or
        several texts for each, and their towers. ``label_loss`` takes features of images [B, D] and
        texts [C, D]. Needs ``text_is_fixed`` False: fixed names are not arranged for the steps.
        """
        raise NotImplementedError

    @torch.no_grad()
    def encode_names(
        self, names: Sequence[ClassText], tower: TextTower, tokenize: Tokenizer
    ) -> Tensor:
        """Encode C class names, or texts for them, in float32; normalised [C, embed_dim].

        Several texts of a class are averaged after that, and normalised again.
        """
        flat, counts = flat_texts(names)
        texts = self.arrange(flat, tower, tokenize)
        # class vectors must not depend on the trainer's precision
        with torch.autocast(texts.prefix.device.type, enabled=False):
            return averaged(self.encode_texts(tower, texts), counts)

    def settings(self) -> dict[str, Any]:
        """Return the settings of a subclass, its arguments beyond the common ones, by name.

        Stage 2 passes them to ``__init__`` as read back from JSON; an attribute may hold the value
        that None resolved to. A ConfigError if a setting has no attribute of its name, or is not
        JSON.
        """
        variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        common = signature(PromptMethod).parameters
        names = [
            name
            for name, parameter in signature(type(self)).parameters.items()
            if name not in common and parameter.kind not in variadic
        ]
        # through JSON, as stage 2 reads them
        try:
            settings = {name: getattr(self, name) for name in names}
            return dict(json.loads(json.dumps(settings)))
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the settings of the prompt method {type(self).__name__} cannot be saved "
                f"({error}): keep each as a number, text or list in an attribute of its name"
            ) from error

    def saved(self) -> dict[str, Tensor]:
        """Return copies of the tensors for ``restore``, float32; by default the state dict.

        An empty dict marks an untuned teacher; prepared targets check for it.
        """
        return {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}

    @classmethod
    def restore(
        cls,
        vision: PromptConfig,
        text: PromptConfig,
        context: str | None,
        clip: ImageClip,
        saved: Mapping[str, Tensor],
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> "PromptMethod":
        """Build the method from ``saved`` and ``settings``; for images, half a CLIP is enough.

        A ConfigError, ValueError or TypeError if sizes, settings or tensors do not fit.
        """
        method = cls(vision, text, context, clip, **settings)
        state = method.state_dict()
        # with an image half, saved text prompts are left out
        tensors = {name: tensor for name, tensor in saved.items() if name in state}
        require_tensors(state, tensors)
        method.load_state_dict(tensors)
        return method


MethodFactory = Callable[[PromptConfig, PromptConfig, str | None, ImageClip], PromptMethod]
"""Builds a ``PromptMethod`` from the common arguments, with its settings bound.

From a ``class_path``, jsonargparse makes a factory of the class with its ``init_args`` bound, as
for any Callable that returns a class instance.
"""


def prompt_method(name: str) -> type[PromptMethod]:
    """Find a prompt method by name, such as ``coupled``, or class path; ConfigError if unknown."""
    return find_class(name, _NAMED, PromptMethod, "prompt method")


def method_name(method: type[PromptMethod]) -> str:
    """Return the name by which ``prompt_method`` finds a class."""
    path = f"{method.__module__}.{method.__qualname__}"
    return next((name for name, class_path in _NAMED.items() if class_path == path), path)
