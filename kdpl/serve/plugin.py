"""Additions to kdpl that serve a classifier: to other programs, and on a page to try it on."""

from kdpl.runtime.plugins import Plugin

PLUGIN = Plugin(
    commands={
        "demo": "kdpl.serve.demo.command:demo",
        "serve": "kdpl.serve.command:serve",
    },
)
