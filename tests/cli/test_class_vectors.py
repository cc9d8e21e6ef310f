from pathlib import Path

import pytest
import torch
import world
from plain import normalized, prompt_text, relative_error
from runs import configs, refused
from world import DIGITS

from kdpl.__main__ import main
from kdpl.class_vectors import ClassVectors


@pytest.fixture
def out(tmp_path):
    return tmp_path / "new" / "vectors.safetensors"


def encode(teacher, out, *more):
    return main(["class-vectors", f"--teacher={teacher}", f"--out={out}", *more])


def require_frozen(file, run):
    assert file.read_bytes() == (run / "class_vectors.safetensors").read_bytes()


@pytest.mark.parametrize("source", ["a list", "the data", "a whole config"])
def test_the_names_of_the_teachers_own_run_give_its_class_vectors_bit_for_bit(
    source, teacher_run, out, tmp_path, capsys
):
    names = tmp_path / "names.txt"
    names.write_text("\ufeff" + "\n\n".join(DIGITS) + "\n  \n", encoding="utf-8")
    options = {
        "a list": [f"--class-list={names}"],
        "the data": configs("data/digits.yaml"),
        "a whole config": [f"--config={teacher_run}/config.yaml"],
    }
    run = teacher_run
    if source == "a list":
        # the folder of run has the teacher's
        run = tmp_path / "run"
        run.mkdir()
        (run / "teacher").symlink_to(teacher_run)
    assert encode(run, out, *options[source]) == 0
    require_frozen(out, teacher_run)
    assert capsys.readouterr() == (f"class vectors of 10 classes: {out}\n", "")


def test_names_that_the_teacher_never_saw_are_encoded_with_its_prompts(
    tmp_path, out, plain_of, capsys
):
    draw = torch.Generator().manual_seed(0)
    context, deep = torch.randn(4, 40, generator=draw), torch.randn(2, 4, 40, generator=draw)
    tensors = {"text_prompts.context": context, "text_prompts.deep": deep}
    prompts = world.tuned_prompts(tensors, "test-teacher", context=None)
    prompts.save(tmp_path / "prompts.safetensors")
    assert encode(tmp_path, out, "--classes", "hermit_crab", " eel ") == 0
    assert "may not find it by name" in capsys.readouterr().err
    vectors = ClassVectors.load(out)
    texts = [prompt_text("X X X X", name) for name in ("hermit_crab", "eel")]
    layers = torch.cat([context[None], deep]).double()
    expected = normalized(plain_of("test-teacher").text_features(texts, layers))
    assert relative_error(vectors.vectors, expected) < 1e-5
    assert vectors.class_names == ("hermit_crab", "eel")
    assert vectors.num_base is vectors.context is None
    assert vectors.logit_scale == pytest.approx(30)
    assert (vectors.clip, vectors.teacher) == (prompts.clip, prompts.teacher)
    assert vectors.preprocessing == prompts.preprocessing


def test_wrong_arguments_are_one_line_and_nothing_is_written(
    teacher_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    contents = {
        "empty.txt": b"\n \n",
        "latin.txt": b"caf\xe9\n",
        "number.yaml": b"data: 3",
    }
    for name, content in contents.items():
        Path(name).write_bytes(content)
    for settings, words in (
        (["--classes", "one", "two", " one"], ["--classes", "'one' twice"]),
        (["--classes", "word " * 100], ["32 tokens"]),
        (["--class-list=empty.txt"], ["empty.txt", "no class names"]),
        (["--class-list=latin.txt"], ["latin.txt", "UTF-8", "line 1"]),
        (["--classes", "one", "--teacher=."], ["prompts.safetensors", "does not exist"]),
        ([], ["--classes, --class-list or --config"]),
        ([*configs("data/digits.yaml"), "--data.init_args.shot=1"], ["'shot'"]),
        (["--config=number.yaml"], ['key "data"', "value: 3"]),
    ):
        refused(capsys, encode(teacher_run, "out", *settings), *words)
    assert sorted(contents) == sorted(path.name for path in tmp_path.iterdir())


def test_classes_that_a_classifier_cannot_take_are_not_written(
    teacher_run, classifier, tmp_path, out, capsys
):
    world.tuned_prompts({}, "test-teacher").save(tmp_path / "prompts.safetensors")
    of = f"--classifier={classifier}"
    refused(capsys, encode(tmp_path, out, of, "--classes", "eel"), "another tuned teacher")
    refused(capsys, encode(teacher_run, out, of, "--classes", "nine"), "the class 'nine' already")
    assert not out.exists()
    assert encode(teacher_run, out, of, "--classes", "eel") == 0
