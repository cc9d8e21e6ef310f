"""Miniature CLIPs, a teacher and two students, to run the pipeline on a laptop without downloads.

They were pretrained on captioned printed glyphs (digits and letters in matplotlib's fonts), never
on handwriting. In a clone, ``python -m benchmarks.worlds.pretrain`` creates their weights.
"""

from functools import partial

from kdpl.clip.miniatures.models import CONFIGS, TAG, packaged_weights


def register() -> None:
    """Register the tiny CLIPs, as an entry point.

    They are ``tiny-teacher``, ``tiny-student`` and ``tiny-resnet``, with the tag ``glyphs``.
    """
    from kdpl.clip.loading import register_model

    for name, config in CONFIGS.items():
        register_model(name, config, {TAG: partial(packaged_weights, name)})
