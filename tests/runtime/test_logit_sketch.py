import pytest
import torch
from world import one_sentence

from kdpl.errors import ArtifactError
from kdpl.runtime.logit_sketch import FILE, LogitSketch


def logits_of(images, classes, std=3.0):
    draw = torch.Generator().manual_seed(classes)
    return 20 + std * torch.randn(images, classes, generator=draw)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("classes", [2, 10, 64])
def test_confidences_of_up_to_64_classes_are_those_of_the_logits(classes, temperature):
    logits = logits_of(50, classes)
    expected = (logits.double() / temperature).softmax(dim=1).amax(dim=1)
    found = LogitSketch.of(logits).confidences(temperature)
    assert torch.from_numpy(found) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_confidences_of_a_thousand_classes_are_close_and_on_average_closer(temperature):
    logits = logits_of(500, 1000)
    expected = (logits.double() / temperature).softmax(dim=1).amax(dim=1)
    error = torch.from_numpy(LogitSketch.of(logits).confidences(temperature)) - expected
    assert error.abs().max() < 0.005
    assert error.mean().abs() < 0.001


def test_a_large_sketch_stays_small_and_counts_every_class():
    sketch = LogitSketch.of(logits_of(7, 1000))
    assert sketch.values.shape == (7, 64)
    assert sketch.values.dtype == torch.float16
    assert int(sketch.counts.sum()) == 1000
    assert (sketch.values.diff(dim=1) <= 0).all()


def test_what_was_written_is_read(tmp_path):
    sketch = LogitSketch.of(logits_of(5, 8))
    sketch.save(tmp_path)
    read = LogitSketch.load(tmp_path)
    assert torch.equal(read.values, sketch.values)
    assert torch.equal(read.counts, sketch.counts)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_missing_or_damaged_sketch_is_named(damage, tmp_path):
    if damage == "cut":
        LogitSketch.of(logits_of(5, 8)).save(tmp_path)
        whole = (tmp_path / FILE).read_bytes()
        (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError) as error:
        LogitSketch.load(tmp_path)
    assert one_sentence(error)
    assert FILE in str(error.value)
