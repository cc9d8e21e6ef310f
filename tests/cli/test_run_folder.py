"""``run PATH``: images are surveyed, and what is not given is chosen for them."""

import os
import shlex
from pathlib import Path

import pytest
import torch
from runs import SHORT, error_line, image_folder, interrupted_at, noise, refused

from kdpl.__main__ import main
from kdpl.cli.run_defaults import Choice, Options, choose
from kdpl.data import inspection
from kdpl.data.checked import Checked
from kdpl.data.options import ReadingOptions
from kdpl.data.readers.table import Table
from kdpl.data.reading import Reading
from kdpl.runtime.files import read_rows
from kdpl.runtime.run_folder import DECODED_FILE

MINIATURES = Choice(
    trainer=["trainer/cpu"],
    teacher=["quickstart"],
    student=["quickstart"],
    target="refined",
    search=True,
    reasons=dict.fromkeys(("trainer", "models", "target", "labels", "search"), "why"),
)


def chosen(given):
    return MINIATURES.completed(given, "data.yaml")


def test_a_folder_alone_becomes_a_classifier_and_the_printed_command_resumes_elsewhere(
    tmp_path, monkeypatch, capsys
):
    image_folder(tmp_path / "my pets")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    few = [*SHORT, "--data.init_args.batch_size=4", "--trainer.limit_train_batches=1.0", "--seed=2"]
    with interrupted_at(2):
        assert main(["run", "my pets", *few]) == 130
    said, err = capsys.readouterr()
    assert err.endswith("resume (step 1 of 5 is finished and kept)\n")
    (command,) = [line for line in said.splitlines() if line.startswith("  python -m kdpl run")]
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(shlex.split(command)[3:]) == 0
    out = tmp_path / "runs" / "my pets"
    assert (out / "student" / "classifier" / "model.safetensors").is_file()
    assert not list((tmp_path / "elsewhere").iterdir())
    capsys.readouterr()
    # the short form again, which neither surveys nor chooses anew
    monkeypatch.chdir(tmp_path)
    assert main(["run", "my pets", *few]) == 0
    said = capsys.readouterr().out
    assert "nothing to do" in said
    assert "2 classes" not in said
    refused(capsys, main(["run", "elsewhere", "--out", str(out)]), "my pets", "elsewhere")
    # a search, other names and another image are another run
    assert main(["run", "my pets", *few, "--search"]) == 1
    error_line(capsys, "leave --search out")
    (tmp_path / "names.csv").write_text("cat,tom cat\ndog,hound\n")
    named = main(["run", "my pets", *few, "--class-names=names.csv"])
    refused(capsys, named, "--class-names", "choose another --out")
    noise(8, 9).save(tmp_path / "my pets" / "train" / "cat" / "new.png")
    refused(capsys, main(["run", "my pets", *few]), "other images", "choose another --out")
    (tmp_path / "my pets").rename(tmp_path / "moved")
    refused(capsys, main(["run", "my pets", *few]), "my pets", "does not exist")


def test_an_image_that_was_left_out_is_named_at_each_start_and_its_repair_is_another_run(
    tmp_path, monkeypatch, capsys
):
    images = image_folder(tmp_path / "pets", splits=("train",))
    rows = [f"{file},{file.parent.name}\n" for file in sorted(images.rglob("*.png"))]
    bad, good = (images / "train/cat" / name for name in ("1.png", "0.png"))
    bad.write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    Path("pets.csv").write_text("".join(["image,label\n", *rows]))
    run = ["run", "pets.csv", *SHORT]

    def start():
        with interrupted_at(1):
            assert main(run) == 130
        said, err = capsys.readouterr()
        assert said.count(f"  left out: image {bad} ") == 1
        return err

    assert "touched" not in start()
    # a file that is only touched is compared by each fit
    os.utime(good, (0, 2e9))
    newest = "2033-05-18 03:33:20+00:00 of 0.png ("
    assert f"were touched since runs/pets was begun, the last one {newest}" in start()
    os.utime(good)
    # repaired as told
    noise(9, 9).save(bad)
    refused(capsys, main(run), " of 1.png (", "other images", "choose another --out")


def test_a_run_may_end_with_a_table_of_the_targets_and_go_on_later(tmp_path, monkeypatch, capsys):
    image_folder(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    few = ["run", "pets", *SHORT, "--data.init_args.batch_size=4"]
    assert main([*few, "--until=targets"]) == 0
    table = Path("runs/pets/student/pool_targets.csv")
    assert f"targets     {table}" in capsys.readouterr().out
    rows = read_rows(table)
    assert len(rows) == len(list(Path("pets/train").rglob("*.png")))
    assert all({row["class"], row["second_class"]} == {"cat", "dog"} for row in rows)
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    before = table.stat().st_mtime_ns
    assert main(few) == 0
    assert table.stat().st_mtime_ns == before
    assert Path("runs/pets/student/classifier/model.safetensors").is_file()


def test_what_is_given_wins():
    options, reasons = chosen(Options())
    assert options.config == ["data.yaml", "trainer/cpu"]
    assert options.teacher == ["quickstart", "zero_shot"]
    assert options.student == ["quickstart", "refined"]
    assert options.settings == ["--data.init_args.train_on_val=true"]
    assert options.search == ()
    assert len(reasons) == 5

    options, reasons = chosen(Options(["trainer/gpu"], ["promptsrc_vit_l14"], ["promptkd_vit_b16"]))
    assert options.config == ["data.yaml", "trainer/gpu"]
    assert options.teacher == ["promptsrc_vit_l14", "zero_shot"]
    assert options.student == ["promptkd_vit_b16", "refined"]
    assert options.search is None
    # that of the target and the labels, and that nothing is searched
    assert len(reasons) == 3
    assert "add --search" in reasons[2]

    student = ["quickstart", "local_views"]
    assert chosen(Options(student=student))[0].student == student
    kept = chosen(Options(settings=["--data.train_on_val=false"]))[0].settings
    assert kept == ["--data.train_on_val=false"]


@pytest.mark.parametrize(
    "given",
    [
        Options(tuned=True),
        Options(settings=["--model.target=teacher"]),
        Options(student=["quickstart", "labeled"]),
        Options(student=["quickstart", "refined"], tuned=True),
    ],
)
def test_the_teacher_is_tuned_where_its_labels_are_not_refined_or_it_is_wanted(given):
    options, _ = chosen(given)
    assert options.teacher == ["quickstart"]
    assert options.student == (given.student or ["quickstart"])
    assert [*options.settings] == [*given.settings]


def test_labels_that_refine_the_original_clip_are_not_spent_twice():
    student = [[], ["quickstart", "refined"]]
    target = ["--model.init_args.target.class_path=kdpl.targets.refinement.target.Refined"]
    for given in (*(Options(student=names) for names in student), Options(settings=target)):
        assert chosen(given)[0].teacher == ["quickstart", "zero_shot"]
    alone = chosen(Options(teacher=["quickstart", "zero_shot"]))[0]
    assert alone.teacher == ["quickstart", "zero_shot"]


@pytest.mark.parametrize(
    ("gpus", "memory", "trainer", "teacher", "student"),
    [
        (0, 0, ["cpu"], ["quickstart"], ["quickstart"]),
        (1, 80, ["gpu"], ["promptsrc_vit_l14"], ["promptkd_vit_b16"]),
        (2, 6, ["gpu", "ddp"], ["promptsrc_vit_l14", "vit_b16"], ["promptkd_vit_b16"]),
    ],
)
def test_models_are_chosen_by_the_gpu(gpus, memory, trainer, teacher, student, monkeypatch):
    class Properties:
        total_memory = memory * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    choice = choose(several_labels=False).for_pool(700)
    assert choice.trainer == [f"trainer/{name}" for name in trainer]
    assert (choice.teacher, choice.student, choice.target) == (teacher, student, "refined")
    assert choice.search == (teacher == ["quickstart"])


def test_several_labels_and_few_images_are_chosen_for():
    choice = choose(several_labels=True).for_pool(700)
    assert choice.teacher == ["quickstart", "zero_shot"]
    assert (choice.student, choice.target) == (["quickstart_timm_64"], "local_views")
    assert not choice.search
    assert not choose(several_labels=False).for_pool(400).search


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--student=quickstart --out=out", ["--teacher", "my_images"]),
        ("--teacher=t --student=s --out=out --label-separator=;", ["';'", "PATH"]),
        ("missing", ["missing", "does not exist"]),
    ],
)
def test_what_is_missing_is_named(args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused(capsys, main(["run", *args.split()]), *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--data.shotss=1", "shotss"),
        ("--studnet=quickstart", "studnet"),
        ("--student=misspelt.yaml", "kd_wieght"),
    ],
)
def test_a_mistyped_setting_is_refused_before_the_images_are_read(
    option, word, tmp_path, pets, monkeypatch, capsys
):
    monkeypatch.setattr("kdpl.cli.prepare.survey", lambda *_, **__: 1 / 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "misspelt.yaml").write_text("model: {init_args: {kd_wieght: 1}}")
    refused(capsys, main(["run", str(pets), option]), word)
    assert not (tmp_path / "runs").exists()


def test_an_unreadable_choice_is_refused(tmp_path, pets, capsys):
    file = tmp_path / "out" / "data" / "choice.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    refused(capsys, main(["run", str(pets), "--out", str(tmp_path / "out")]), str(file))


def test_the_images_are_decoded_once_for_survey_and_fits(tmp_path, monkeypatch):
    image_folder(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    looked, look = [], inspection.in_parallel

    def note(function, items, title, *_):
        looked.append(len(items))
        return look(function, items, title, 1)

    monkeypatch.setattr(inspection, "in_parallel", note)
    with interrupted_at(2):
        assert main(["run", "pets", *SHORT]) == 130
    assert len([number for number in looked if number]) == 1
    kept, *copied = (Checked.load(file) for file in sorted(Path("runs/pets").rglob(DECODED_FILE)))
    # as a fit would have found out by itself
    reading = Reading(Table("runs/pets/data/images.csv"), ReadingOptions())
    reading.of_run(tmp_path / "again")
    reading.scan(trains=True)
    assert [kept] * len(copied) == copied
    assert kept == Checked.load(tmp_path / "again" / DECODED_FILE)
