"""Miniature CLIPs, a teacher and two students, for running the pipeline on a laptop offline.

They were pretrained on captioned printed glyphs (digits and letters in matplotlib's fonts), never
on handwriting. In a clone, ``python -m benchmarks.worlds.pretrain`` creates their weights.
"""

from functools import partial

from kdpl.clip.miniatures.models import CONFIGS, TAG, packaged_weights


def register() -> None:
    """Register ``tiny-teacher``, ``tiny-student`` and ``tiny-resnet``, with the tag ``glyphs``."""
    from kdpl.clip.loading import register_model

    for name, config in CONFIGS.items():
        register_model(name, config, {TAG: partial(packaged_weights, name)})
