"""Additions to kdpl that serve a classifier to other programs."""

from kdpl.runtime.plugins import Plugin

PLUGIN = Plugin(commands={"serve": "kdpl.serve.command:serve"})
