"""Additions of the benchmark to kdpl: its datasets and commands."""

from kdpl.runtime.plugins import Plugin

PLUGIN = Plugin(
    commands={
        "benchmark": "kdpl.benchmark.command:benchmark",
        "data": "kdpl.benchmark.data_command:data",
        "table": "kdpl.benchmark.command:table",
    },
    datasets={"benchmark": "kdpl.benchmark.readers:READERS"},
)
