"""Domains that need no download, beside the package's digits, and what the miniature CLIPs were pretrained on."""

from collections.abc import Mapping

from benchmarks.worlds.letters import Letters
from kdpl.data.readers.digits import Digits
from kdpl.data.splits import Reader

WORLDS: Mapping[str, Reader] = {"digits": Digits(), "letters": Letters()}
"""Readers of the domains that need no download."""

CONFIGS = {"digits": "configs/data/digits.yaml", "letters": "benchmarks/worlds/letters.yaml"}
"""Data configs of the same."""
