"""Miniature CLIPs, a teacher and two students, that make the whole pipeline runnable on a laptop without a download.

They have seen printed glyphs (digits and letters in the fonts that matplotlib ships) with captions, and nothing
handwritten. ``python -m kdpl.tiny.pretrain`` makes their weights.
"""

from functools import partial

from kdpl.tiny.models import CONFIGS, TAG, load_weights


def register() -> None:
    """Make ``tiny-teacher``, ``tiny-student`` and ``tiny-resnet`` known, each with the tag ``glyphs``.

    Found through the entry point group ``kdpl.models``. No weight is read before a model is asked for.
    """
    from kdpl.clip import register_model

    for name, config in CONFIGS.items():
        register_model(name, config, {TAG: partial(load_weights, name)})
