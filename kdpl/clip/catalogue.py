"""The CLIPs that are known by name: their possible uses, size, and licence of the weights."""

import json
import re
from dataclasses import dataclass
from importlib.resources import files

import timm

from kdpl.clip.loading import count_image_parameters, known_models
from kdpl.clip.towers.kinds import DEFAULT_IMAGE_SIZE, ModelConfig

PARAMETERS_FILE = "image_parameters.json"
"""Parameters of open_clip's image towers, which take minutes to count.

``make models`` counts them again.
"""

# by the model and its pretrained tag, as the model cards of the weights state it; the first pattern
# found counts
_LICENCES = {
    r"^tiny-": "MIT",
    r"^nllb-clip|metaclip": "CC-BY-NC-4.0",
    r"^MobileCLIP": "Apple AMLR",
    r" dfn": "Apple's own",
    r"^EVA": "MIT",
    r"CLIPA|SigLIP|^PE-Core": "Apache-2.0",
    r" openai$| .*laion| datacomp_| commonpool_": "MIT",
}

UNKNOWN_LICENCE = "see its card"

_TIMM_TOKENS = {"deit", "eva", "vision_transformer", "vision_transformer_hybrid", "vitamin"}
"""timm's modules whose networks are vision transformers."""


@dataclass(frozen=True)
class CatalogueEntry:
    """A CLIP with those of its pretrained tags that have the same licence."""

    model: str
    tags: tuple[str, ...]
    image_size: int
    parameters: int  # of the image tower
    teacher: str  # the prompts that it takes as a teacher
    student: str  # what is trained of it as a student
    extra: str  # the extra of kdpl that it needs as a teacher, or ""
    licence: str


def catalogue(word: str = "") -> list[CatalogueEntry]:
    """List the CLIPs whose name or tag contains a word in any case, without a network."""
    counted = json.loads((files("kdpl.clip") / PARAMETERS_FILE).read_text(encoding="utf-8"))
    entries = []
    for model, (config, tags) in sorted(known_models().items(), key=lambda item: item[0].lower()):
        by_licence: dict[str, list[str]] = {}
        for tag in tags:
            if word.lower() in f"{model} {tag}".lower():
                by_licence.setdefault(licence(model, tag), []).append(tag)
        if by_licence:
            size = config["vision_cfg"].get("image_size", DEFAULT_IMAGE_SIZE)
            parameters = counted.get(model) or count_image_parameters(config)
            text = config["text_cfg"]
            extra = (
                "transformers" if text.get("hf_tokenizer_name") or text.get("hf_model_name") else ""
            )
            about = (size, parameters, *grades(config), extra)
            entries += [
                CatalogueEntry(model, tuple(some), *about, each)
                for each, some in by_licence.items()
            ]
    return entries


def grades(config: ModelConfig) -> tuple[str, str]:
    """Return what a model is good for as a teacher and as a student, by its config alone."""
    visual, text = takes_visual_prompts(config), takes_text_prompts(config)
    teacher = " + ".join(["text"] * text + ["visual"] * visual)
    return teacher or "zero-shot", "prompts" if visual else "projector"


def takes_visual_prompts(config: ModelConfig) -> bool:
    """Return True if a model's image tower has tokens that prompts can stand beside.

    This follows from its config alone.
    """
    vision = config["vision_cfg"]
    if "timm_model_name" in vision:
        return timm.models.is_model_in_modules(vision["timm_model_name"], _TIMM_TOKENS)
    return not isinstance(vision["layers"], list | tuple)


def takes_text_prompts(config: ModelConfig) -> bool:
    """Return True if a model's text tower takes prompts, by its config alone.

    Text towers of CoCa models take none, those of Hugging Face models at their input alone.
    """
    return not config["text_cfg"].get("embed_cls")


def licence(model: str, tag: str) -> str:
    """Return the licence of pretrained weights."""
    licences = (name for pattern, name in _LICENCES.items() if re.search(pattern, f"{model} {tag}"))
    return next(licences, UNKNOWN_LICENCE)
