import shutil
from contextlib import chdir
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import pytest
from report_pages import HOSTILE, Page, set_in
from runs import folder_fit, image_folder, noise, refused, rows_of

from kdpl.__main__ import main
from kdpl.data.readers.folder import Folder
from kdpl.data.sources import open_source
from kdpl.report.labeling import page as suggestions
from kdpl.report.labeling.page import Suggestion, Suggestions
from kdpl.report.run_folder import Run
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos and a teacher of them: 4 labels of each of three classes, and 6 images without a label."""
    folder = tmp_path_factory.mktemp("photos")
    root = image_folder(folder / "pets", classes=("cat", "dog", "eel"))
    (folder / "more").mkdir()
    for i in range(6):
        noise(40, 36, seed=i).save(folder / "more" / f"{i}.png")
    options = [f"unlabeled={folder / 'more'}", "reading.bad_images=skip"]
    more = [f"--data.init_args.{option}" for option in options]
    assert main([*folder_fit(root, folder / "run"), *more, "--trainer.max_epochs=1"]) == 0
    return folder


@pytest.fixture
def run(photos, tmp_path):
    """A copy of that teacher for a test to change."""
    return shutil.copytree(photos / "run", tmp_path / "run")


def suggest(run, out, *more):
    return main(["suggest", str(run), f"--out={out}", *more])


def take_over(data, labels):
    """The block of code of the page that takes over labels, for other folders."""
    page = (Path(__file__).parents[3] / "docs/labelling.md").read_text(encoding="utf-8")
    code = page.partition("```python")[2].partition("```")[0]
    return code.replace("runs/mine/data", str(data)).replace("runs/to_label", str(labels))


def test_a_filled_in_table_becomes_the_labels_of_the_next_run(photos, tmp_path, capsys):
    pandas = pytest.importorskip("pandas")
    out, more = tmp_path / "next", photos / "more"
    assert suggest(photos / "run", out, "--images=4") == 0
    rows = rows_of(out / "labels.csv")
    assert list(rows[0]) == ["image", "label", "likely", "probability"]
    to_label = [Path(row["image"]) for row in rows if not row["label"]]
    assert len({*to_label}) == 4
    assert {path.parent for path in to_label} == {more}
    assert all(row["likely"] in {"cat", "dog", "eel"} - {row["label"]} for row in rows)
    # with 4 labels of each class, it does not say that any looks wrong
    said = capsys.readouterr().out
    assert f"4 images to label: {out / 'labels.csv'}" in said
    assert "labels are not checked, as 4 a class are too few" in said
    assert len(rows) == 4
    page = Page((out / "suggestions.html").read_text(encoding="utf-8"))
    assert len(page.of("img")) == len(rows)
    assert all(image["src"].startswith("data:image/webp") for image in page.of("img"))
    first, second = to_label[:2]
    table = pandas.read_csv(out / "labels.csv", index_col="image", dtype=str)
    table.loc[[str(first), str(second)], "label"] = ["eel", "cat"]
    table.to_csv(out / "labels.csv")

    # as the page says, into the list of images that init wrote
    init = ["init", f"--unlabeled={more}", "--workers=1"]
    assert main([*init, str(photos / "pets"), f"--out={tmp_path / 'data'}"]) == 0
    before = rows_of(tmp_path / "data/images.csv")
    with chdir(tmp_path):
        exec(take_over(tmp_path / "data", out))  # noqa: S102 - a block of code of the docs
    assert main([*init, str(tmp_path / "images.csv"), f"--out={tmp_path / 'again'}"]) == 0
    after = {row["image"]: row for row in rows_of(tmp_path / "again/images.csv")}
    assert (after[str(first)]["label"], after[str(second)]["label"]) == ("eel", "cat")
    assert {row["image"] for row in before} < after.keys()
    for row in before:
        assert after[row["image"]]["split"] == row["split"]


def test_a_benchmarks_labels_beyond_the_sample_count_as_hidden(teacher_run, tmp_path):
    assert suggest(teacher_run, tmp_path / "out", "--images=50") == 0
    rows = rows_of(tmp_path / "out/labels.csv")
    assert sum(not row["label"] for row in rows) == 50
    assert all(row["image"].startswith("digits/") for row in rows)


@pytest.mark.parametrize("planted", [[], [3, 50, 77, 120]])
def test_labels_that_are_planted_look_wrong_and_of_correct_ones_hardly_any(
    planted, teacher_run, monkeypatch
):
    run = Run.find(teacher_run)
    records = list(suggestions.known_labels(run.data))
    wrong = {records[i].source for i in planted}
    for i in planted:
        records[i] = records[i]._replace(label=(records[i].label + 3) % 10)
    monkeypatch.setattr(suggestions, "known_labels", lambda _: records)
    doubtful = Suggestions.of(run, 1, 10).doubtful
    assert wrong <= {label.source for label in doubtful}
    assert len(doubtful) <= len(wrong) + 1
    number = run.data.class_names.index
    right = [row for row in doubtful if (number(row.likely) + 3) % 10 == number(row.label)]
    assert len(right) >= len(wrong) - 1  # the discriminant is right on about nine in ten


def test_without_a_label_none_is_checked_and_four_for_each_class_are_chosen(
    teacher_run, tmp_path, capsys
):
    run = shutil.copytree(teacher_run, tmp_path / "run")
    set_in(run, "data", shots=0)
    assert suggest(run, tmp_path / "out", "--pool=100") == 0
    assert "there are no labels to check" in capsys.readouterr().out
    assert [row["label"] for row in rows_of(tmp_path / "out/labels.csv")] == [""] * 40


def test_without_an_image_to_label_the_labels_are_checked_but_the_only_one_of_a_class(
    run, tmp_path, capsys
):
    root = tmp_path / "pets"
    for number, (name, images) in enumerate({"cat": 20, "dog": 20, "eel": 1}.items()):
        (root / "train" / name).mkdir(parents=True)
        for i in range(images):
            noise(40, 36, seed=50 * number + i).save(root / "train" / name / f"{i}.png")
    set_in(run, "data", root=str(root), unlabeled=None)
    assert suggest(run, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "there are no images without a label to choose from" in said
    assert "1 label is not checked" in said
    assert all(row["label"] not in ("", "eel") for row in rows_of(tmp_path / "out/labels.csv"))


def test_numbers_that_do_not_fit_are_refused(photos, tmp_path, capsys):
    capsys.readouterr()
    for options, words in (
        (["--images=7"], "--images 7 is more than the 6 images without a label"),
        (["--images=3", "--pool=2"], "--images 3 is more than the 2 images looked at by --pool"),
        (["--images=0"], "images"),
    ):
        refused(capsys, suggest(photos / "run", tmp_path / "out", *options), words)
    assert not (tmp_path / "out").exists()


def test_an_earlier_table_and_a_run_that_cannot_be_looked_at_are_refused(
    run, tmp_path, capsys, monkeypatch
):
    (tmp_path / "labels.csv").write_text("image,label\n")
    refused(capsys, suggest(run, tmp_path), "labels.csv exists already", "--out")
    refused(capsys, suggest(tmp_path, tmp_path / "out"), f"{tmp_path} is not a run's folder")
    with monkeypatch.context() as patch:
        patch.setattr(suggestions, "build_task", lambda _: SimpleNamespace(per_class=True))
        refused(capsys, suggest(run, tmp_path / "out"), "several labels an image")
    (run / CLASS_VECTORS_FILE).unlink()
    refused(capsys, suggest(run, tmp_path / "out"), CLASS_VECTORS_FILE, "run stage 1 again")


def some(folder, class_names, sources, reader=None):
    """A page of suggestions for some images."""
    splits = SimpleNamespace(open_image=open_source, origin="folder <b>")
    reading = SimpleNamespace(reader=reader)
    data = SimpleNamespace(class_names=class_names, splits=splits, reading=reading)
    names = cycle(class_names)
    shown = [Suggestion(source, "", next(names), 0.5) for source in sources]
    doubtful = [Suggestion(sources[0], class_names[1], class_names[0], 0.9)]
    Suggestions(data, shown, doubtful, ["there are <i>no</i> others"]).save(folder)
    return folder / "suggestions.html"


def test_the_table_has_labels_of_the_users_images_where_a_file_names_the_classes(tmp_path):
    (tmp_path / "names.csv").write_text("0,zero\n1,one\n")
    image_folder(tmp_path, classes=("0", "1"), images=1, splits=("train",))
    sources = sorted(str(path) for path in tmp_path.rglob("*.png"))
    reader = Folder(str(tmp_path), class_names=str(tmp_path / "names.csv"))
    some(tmp_path / "out", ("zero", "one"), sources, reader)
    rows = rows_of(tmp_path / "out/labels.csv")
    expected = [("", "0"), ("", "1"), ("1", "0")]
    assert [(row["label"], row["likely"]) for row in rows] == expected


def test_a_page_of_hostile_names_shows_them_and_is_whole(tmp_path):
    image_folder(tmp_path, classes=("<script>a", "b"), images=1, splits=("train",))
    sources = sorted(str(path) for path in tmp_path.rglob("*.png"))
    page = Page(some(tmp_path / "out", HOSTILE, sources).read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "i"})
    assert all(" ".join(name.split())[:59] in " ".join(page.texts.values()) for name in HOSTILE)
