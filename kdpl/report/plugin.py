"""Additions of the report to kdpl: pages, suggested labels."""

from kdpl.runtime.plugins import Plugin

PLUGIN = Plugin(
    commands={
        "compare": "kdpl.report.command:compare",
        "estimate": "kdpl.report.command:estimate",
        "report": "kdpl.report.command:report",
        "suggest": "kdpl.report.command:suggest",
    },
    report={"refined": "kdpl.report.refined:SECTION"},
)
