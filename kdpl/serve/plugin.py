"""Additions to kdpl that serve a classifier to other programs or on a page in the browser."""

from kdpl.runtime.plugins import Plugin

PLUGIN = Plugin(commands={"demo": "kdpl.serve.command:demo", "serve": "kdpl.serve.command:serve"})
