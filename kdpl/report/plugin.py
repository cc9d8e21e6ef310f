"""Additions of the report to kdpl: pages, heat maps, suggested labels."""

from kdpl.runtime.plugins import Plugin

PLUGIN = Plugin(
    commands={
        "compare": "kdpl.report.compare_command:compare",
        "estimate": "kdpl.report.estimate.command:estimate",
        "report": "kdpl.report.command:report",
        "suggest": "kdpl.report.labeling.command:suggest",
    },
    observe={
        "explain": "kdpl.report.reasons:options",
    },
    report={
        "refined": "kdpl.report.refined:SECTION",
    },
)
