"""What mutation of whole files has found: each of these once ended in another error than a sentence."""

import zipfile
from pathlib import Path

import pytest
import torch
import world

from kdpl.clip.torch_files import read_torch_file
from kdpl.data.class_mapping import read_class_mapping
from kdpl.errors import KdplError
from kdpl.prompts.tuned import TunedPrompts
from kdpl.report.run_folder import Stage
from kdpl.runtime.artifacts import write_tensors
from kdpl.runtime.logit_sketch import KIND, LogitSketch

DEEP = "[" * 10_000


@pytest.mark.parametrize("text", [DEEP, "9", "[1]", "null"])
def test_results_of_a_test_that_are_no_object(text, tmp_path):
    (tmp_path / "test.json").write_text(text)
    with pytest.raises(KdplError, match=r"test\.json is damaged \(.*\): run the test again") as error:
        _ = Stage(Path(tmp_path)).results
    assert world.one_sentence(error)


def test_class_names_nested_without_end(tmp_path):
    (tmp_path / "names.json").write_text(f'{{"a": {DEEP}')
    with pytest.raises(KdplError, match=r"names\.json cannot be read as JSON") as error:
        read_class_mapping(tmp_path / "names.json", ["a"])
    assert world.one_sentence(error)


def test_a_published_checkpoint_that_claims_to_span_several_disks(tmp_path):
    file = tmp_path / "model.pt"
    torch.save({"a": torch.ones(3)}, file)
    content = file.read_bytes()
    # the locator of the zip64 end, which torch writes: on disk 7 of 9
    at = content.rindex(b"PK\x06\x07")
    file.write_bytes(content[: at + 4] + b"\x07\0\0\0" + content[at + 8 : at + 16] + b"\x09\0\0\0" + content[at + 20 :])
    with pytest.raises(zipfile.BadZipFile):
        zipfile.is_zipfile(file)
    with pytest.raises(KdplError, match=r"model\.pt is damaged, or not a zip file") as error:
        read_torch_file(file)
    assert world.one_sentence(error)


def test_a_version_that_would_break_the_sentence_that_names_it(tmp_path):
    write_tensors(tmp_path / "test_logits.safetensors", KIND, "\n", {"values": torch.zeros(1, 1)}, {})
    with pytest.raises(KdplError, match=r"has format version \\n, this kdpl reads version") as error:
        LogitSketch.load(tmp_path)
    assert world.one_sentence(error)


def test_a_tensor_whose_name_would_break_the_sentence_that_names_it(tmp_path):
    prompts = world.tuned_prompts({"vision_prompts.tokens": torch.randn(2, 3, 48)})
    prompts.save(tmp_path / "prompts.safetensors")
    content = (tmp_path / "prompts.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].replace(b'"vision_prompts.tokens":{', b'"\\n":{')
    (tmp_path / "prompts.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    with pytest.raises(KdplError, match=r"holds a tensor '\\n' of type") as error:
        TunedPrompts.load(tmp_path / "prompts.safetensors")
    assert world.one_sentence(error)
