"""Catalogue of the CLIPs available by name: possible uses, size, and licence of the weights."""

import re
from dataclasses import dataclass

import timm

from kdpl.clip.loading import known_models
from kdpl.clip.towers.building import DEFAULT_IMAGE_SIZE, ModelConfig

# by model and pretrained tag, as stated in the model cards of the weights; the first match counts
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
    """A CLIP with its pretrained tags of one licence."""

    model: str
    tags: tuple[str, ...]
    image_size: int
    teacher: str  # prompts that it takes as a teacher
    student: str  # what is trained of it as a student
    extra: str  # extra of kdpl that it needs as a teacher, or ""
    licence: str


def catalogue(word: str = "") -> list[CatalogueEntry]:
    """List the CLIPs whose name or tag contains a word, ignoring case; needs no network."""
    entries = []
    for model, (config, tags) in sorted(known_models().items(), key=lambda item: item[0].lower()):
        by_licence: dict[str, list[str]] = {}
        for tag in tags:
            if word.lower() in f"{model} {tag}".lower():
                by_licence.setdefault(licence(model, tag), []).append(tag)
        size = config["vision_cfg"].get("image_size", DEFAULT_IMAGE_SIZE)
        visual, text = takes_visual_prompts(config), takes_text_prompts(config)
        teacher = " + ".join(["text"] * text + ["visual"] * visual) or "zero-shot"
        student = "prompts" if visual else "projector"
        # tokenizers and text towers of Hugging Face
        foreign = map(config["text_cfg"].get, ("hf_tokenizer_name", "hf_model_name"))
        extra = "transformers" if any(foreign) else ""
        entries += [
            CatalogueEntry(model, tuple(group), size, teacher, student, extra, name)
            for name, group in by_licence.items()
        ]
    return entries


def takes_visual_prompts(config: ModelConfig) -> bool:
    """Return True if a model's image tower takes prompts next to its tokens, by its config."""
    vision = config["vision_cfg"]
    if "timm_model_name" in vision:
        return timm.models.is_model_in_modules(vision["timm_model_name"], _TIMM_TOKENS)
    return not isinstance(vision["layers"], list | tuple)


def takes_text_prompts(config: ModelConfig) -> bool:
    """Return True if a model's text tower takes prompts, by its config; a CoCa's takes none."""
    return not config["text_cfg"].get("embed_cls")


def licence(model: str, tag: str) -> str:
    """Return the licence of pretrained weights."""
    licences = (name for pattern, name in _LICENCES.items() if re.search(pattern, f"{model} {tag}"))
    return next(licences, UNKNOWN_LICENCE)
