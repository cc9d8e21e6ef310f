"""Additions to kdpl for several labels per image."""

from kdpl.runtime.plugins import Plugin

PLUGIN = Plugin(
    tasks={"multilabel": "kdpl.multilabel.task:MultiLabel"},
    targets={"local_views": "kdpl.multilabel.local_views:LocalViews"},
    callbacks={"multilabel": "kdpl.multilabel.callback:callbacks"},
    predict={"multilabel": "kdpl.multilabel.command:options"},
    report={"several": "kdpl.multilabel.report:SECTION"},
)
