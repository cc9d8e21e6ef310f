"""The list of faults in faults.txt, and how one is planted."""

import importlib.util
import re
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("faults.txt")

_FAULT = re.compile(
    r"(?P<name>[a-z0-9-]+): (?P<breaks>.+)\n"
    r"(?P<file>[\w/]+\.py) \| (?P<tests>[^|\n]+?)(?: \| (?P<slow>[^|\n]+))?\n"
    r"- (?P<old>.+)\n"
    r"\+ (?P<new>.+)"
)


class Fault(NamedTuple):
    """A line of a file of kdpl/ and what stands in its place; tests are paths below tests/."""

    name: str
    breaks: str
    file: str
    tests: list[str]
    slow: list[str]
    old: str
    new: str

    def planted(self, text):
        """Return the text of the file with the fault; ValueError if its line is not there once."""
        lines = text.splitlines(keepends=True)
        rows = [row for row, line in enumerate(lines) if line.strip() == self.old]
        if len(rows) != 1:
            problem = f"the line of fault {self.name} occurs {len(rows)} times in kdpl/{self.file}"
            raise ValueError(f"{problem}, expected once: change faults.txt as the file was changed")
        lines[rows[0]] = lines[rows[0]].replace(self.old, self.new)
        changed = "".join(lines)
        compile(changed, self.file, "exec")
        return changed


def read_faults():
    """Read all faults; ValueError if something in the list is not one."""
    text = re.sub(r"^#.*\n", "", LIST.read_text(encoding="utf-8"), flags=re.MULTILINE)
    faults = {}
    for block in filter(None, map(str.strip, text.split("\n\n"))):
        match = _FAULT.fullmatch(block)
        if match is None or match["name"] in faults:
            raise ValueError(f"{LIST} has no fault, or one for the second time, in:\n{block}")
        fields = match.groupdict("")
        paths = {
            kind: [f"tests/{path}" for path in fields[kind].split()] for kind in ("tests", "slow")
        }
        faults[match["name"]] = Fault(**fields | paths)
    return list(faults.values())


@contextmanager
def plant(fault, copy):
    """Change the file in a copy of the project, and restore it afterwards."""
    file = copy / "kdpl" / fault.file
    before = file.read_bytes()
    # compiled files are found by size and seconds, in which another fault may be the same
    compiled = Path(importlib.util.cache_from_source(file))
    compiled.unlink(missing_ok=True)
    file.write_text(fault.planted(before.decode()), encoding="utf-8")
    try:
        yield
    finally:
        file.write_bytes(before)
        compiled.unlink(missing_ok=True)
