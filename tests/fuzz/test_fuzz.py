import json
import random
import sys

import pytest
from fuzz import planted, targets
from fuzz.fuzzing import fuzz
from fuzz.mutation import mutated
from fuzz.worker import Limits, Worker

FAULTS = {
    "key": "raised KeyError in _key_error (planted.py)",
    "lines": "has an error of several lines",
    "hang": "took more than 10 s",
    "memory": "took more than 20 MB",
    "write": "wrote files",
    "crash": "ended the process with -6",
}


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    made = Worker(planted.build, tmp_path_factory.mktemp("work"), Limits(seconds=10, megabytes=20))
    yield made
    made.close()


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, worker):
    if name == "memory" and sys.platform != "linux":
        pytest.skip("memory is measured on Linux alone")
    assert worker.read(name, planted.WHOLE) is None
    assert worker.read(name, b"garbled").what == FAULTS[name]
    assert worker.read(name, planted.WHOLE) is None, "the next file is read as if nothing had been"


def test_a_file_that_is_refused_in_a_sentence_is_no_finding(worker):
    assert worker.read("sound", b"garbled") is None


def test_findings_are_counted_and_the_first_file_of_each_is_kept(worker, tmp_path):
    outcome = fuzz(worker, ["sound", "key"], seed=3, seconds=0.2, out=tmp_path / "found")
    assert outcome.inputs["sound"] == outcome.inputs["key"] > 0
    ((found, count),) = outcome.findings.items()
    assert found == ("key", FAULTS["key"])
    assert 0 < count <= outcome.inputs["key"]
    kept = outcome.saved[found]
    assert sorted(tmp_path.rglob("*.*")) == [kept, kept.with_name(f"{kept.name}.txt")]
    assert worker.read("key", kept.read_bytes()).what == FAULTS["key"]
    text = kept.with_name(f"{kept.name}.txt").read_text()
    number = int(text.partition("input ")[2].split()[0])
    assert "KeyError: 'width'" in text
    again = mutated(planted.WHOLE, "key.bin", random.Random(f"3 key {number}"))  # noqa: S311
    assert again == kept.read_bytes(), "a file is made again from seed and number"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return folder, targets.build(folder)


def test_every_reader_takes_its_whole_file(real):
    folder, readers = real
    for target in readers.values():
        target.read(folder / target.file)


def holds_an_object(content, file):
    """Whether a file has a JSON object in it still, after the eight bytes of its length or from the beginning."""
    if file.endswith(".safetensors"):
        content = content[8 : 8 + int.from_bytes(content[:8], "little")]
    try:
        return isinstance(json.loads(content), dict)
    except ValueError:
        return False


def test_files_are_garbled_below_their_syntax_too(real):
    folder, readers = real
    draw = random.Random(1)  # noqa: S311
    for name in ("class vectors", "cache's manifest"):
        file = readers[name].file
        whole = (folder / file).read_bytes()
        garbled = {mutated(whole, file, draw) for _ in range(40)} - {whole}
        assert len(garbled) > 30
        assert sum(holds_an_object(content, file) for content in garbled) > 5
