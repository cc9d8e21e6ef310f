"""A package that adds one thing of each kind to kdpl: everything a ``Plugin`` can name.

Install it with ``pip install -e examples/plugin``, and remove what you do not need. Every command
imports this file, and so it imports no torch; the paths are imported when they are needed.
"""

from kdpl.runtime.plugins import Plugin

PLUGIN = Plugin(
    commands={"classes": "shapes.parts:classes"},
    models={"shapes": "shapes.parts:register"},
    datasets={"shapes": "shapes.parts:READERS"},
    tasks={"smoothed": "shapes.parts:Smoothed"},
    targets={"sharpened": "shapes.parts:Sharpened"},
    callbacks={"shapes": "shapes.parts:callbacks"},
    companions={"shapes": "shapes.parts:Seen"},
    handover={"shapes": "shapes.parts:companions"},
    formats={"bare": "shapes.parts:FORMAT"},
    predict={"shapes": "shapes.parts:decide"},
    report={"shapes": "shapes.report:SECTION"},
)
