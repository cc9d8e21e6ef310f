import shlex
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import yaml
from PIL import Image
from runs import CONFIGS, files_of, image_folder, refused, rows_of
from zoo import write_shard

from kdpl.__main__ import main
from kdpl.data.domain import build_data
from kdpl.errors import DataError
from kdpl.runtime.resizing import Resizing


def picture(path, *colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), colour).save(path)


def class_folders(root, counts=None, **more):
    """``<class>/…`` without splits, with so many images of each class, each of another colour."""
    counts = {**(counts or {}), **more} or {"cat": 8, "dog": 8}
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            picture(root / name / f"{i}.png", 60 * number, i, 7)
    return root


def pets_table(folder):
    """A table beside its images, with one of six images of each class for the test."""
    class_folders(folder / "photos", cat=6, dog=6)
    rows = ["image,label,split"]
    for name in ("cat", "dog"):
        rows += [f"photos/{name}/{i}.png,{name},{'' if i else 'test'}" for i in range(6)]
    (folder / "mine.csv").write_text("\n".join(rows))
    return folder / "mine.csv"


def init(folder, out, *more):
    return main(["init", str(folder), f"--out={out}", "--workers=1", *more])


@pytest.fixture
def survey(tmp_path, capsys):
    """A function that runs ``init`` on a folder or table and returns what it printed."""

    def run(source, *more, out="out"):
        assert init(source, tmp_path / out, *more) == 0
        return capsys.readouterr().out

    return run


def listed(out):
    rows = rows_of(out / "images.csv")
    return [(Path(row["image"]).name, row["label"], row["split"]) for row in rows]


def settings(out):
    return yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))["data"]["init_args"]


def built(**settings):
    """A datamodule of settings as configs have them."""
    return build_data([{"init_args": {"num_workers": 0, **settings}}])


def splits_of(out):
    """The dataset as a run of the written config takes it."""
    return built(**settings(out)).splits


def test_what_has_no_image_is_said_and_files_are_counted_but_for_given_and_hidden_ones(
    tmp_path, survey, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    root = class_folders(Path("pets"), cat=8, dog=8, ant=1)
    names = ("cat/1.heic", "eel/2.HEIC", "notes.txt", "README", "a.tar", ".cache/x.bin", "cat/.x")
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    (root / "names.csv").write_text("cat,cat\ndog,dog\nant,bee\n")
    out = survey(root, f"--class-names={root}/names.csv")
    assert "  without a test image: bee\n" in out
    assert "  folders without images, and no classes: eel\n" in out
    assert "  not images, and passed over: .heic (2), no suffix (1), .txt (1)\n" in out


def test_the_run_that_init_prints_is_possible_in_another_folder(tmp_path, survey, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "my pets", images=1)
    out = survey("my pets", out="my out")
    words = shlex.split(out.splitlines()[-1])
    assert "--student refined" in shlex.join(words)
    assert all(f"  {name}" in out for name in ("trainer/", "teacher ", "target refined: "))
    # where a run's first step would begin
    monkeypatch.setattr("kdpl.cli.run._do", lambda *_: 1 / 0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ZeroDivisionError):
        main(words[3:])
    assert Path(words[words.index("--out") + 1]).parent == tmp_path
    assert not list(Path().iterdir())


def test_your_validation_images_are_all_used(tmp_path, survey):
    root = image_folder(tmp_path / "pets", images=6, splits=("train", "val"))
    survey(root)
    configs = [settings(tmp_path / "out")]
    for name, path in (("folder", root), ("table", tmp_path / "out/images.csv")):
        shipped = yaml.safe_load((CONFIGS / f"data/{name}.yaml").read_text())["data"]["init_args"]
        configs.append(shipped | {"root": str(path)})
    for config in configs:
        data = built(**{"allow_fewer_shots": True, **config})
        assert len(data.evaluation_dataloader_for("val", Resizing(32)).dataset) == 12


def test_an_image_whose_path_is_not_utf8_is_named_and_left_out(tmp_path, survey):
    root = class_folders(tmp_path / "pets")
    (root / "cat" / "0.png").rename(root / "cat" / "\udcff.png")
    picture(tmp_path / "more" / "good.png", 1, 2, 3)
    picture(tmp_path / "more" / "\udcff.png", 3, 2, 1)
    out = survey(root, f"--unlabeled={tmp_path / 'more'}")
    assert r"cat/\udcff.png has a path that is not UTF-8" in out
    assert r"more/\udcff.png has a path that is not UTF-8" in out
    assert len(listed(tmp_path / "out")) == 15
    sources = splits_of(tmp_path / "out").sources
    assert len(sources) == 16
    assert not any("\udcff" in source for source in sources)


def test_a_group_is_in_one_split_stays_with_its_images_and_counts_once(tmp_path, survey):
    for i in range(24):
        picture(tmp_path / f"{i:02}.png", 10 * i, 3 * i, 200)
    rows = "".join(f"{i:02}.png,{'cat' if i % 2 else 'dog'},camera {i // 3}\n" for i in range(24))
    (tmp_path / "mine.csv").write_text(f"image,label,group\n{rows}")
    out = survey(tmp_path / "mine.csv", "--val-share=30%")
    splits_by_group = defaultdict(set)
    for row in rows_of(tmp_path / "out/images.csv"):
        assert row["group"] == f"camera {int(Path(row['image']).stem) // 3}"
        splits_by_group[row["group"]].add(row["split"])
    assert all(len(splits) == 1 for splits in splits_by_group.values())
    numbers = Counter(split for splits in splits_by_group.values() for split in splits)
    assert numbers == {"held_out": 2, "val": 2, "train": 4}
    assert splits_of(tmp_path / "out").groups
    assert "  val: 6," in out


def test_a_table_keeps_its_splits_and_bad_images_and_copies_in_further_places_are_left_out(
    tmp_path, survey, monkeypatch
):
    table, more = pets_table(tmp_path), tmp_path / "more"
    write_shard(tmp_path / "a.tar", [1, 2])
    torn = write_shard(tmp_path / "b.tar", [3, 4])
    torn.write_bytes(torn.read_bytes().replace(b"IDAT", b"IDOT", 1))
    picture(more / "new.png", 1, 2, 3)
    (more / "bad.png").touch()
    shutil.copy(tmp_path / "photos/cat/0.png", more / "test copy.png")
    (more / "test link.png").symlink_to(tmp_path / "photos/dog/0.png")
    monkeypatch.chdir(tmp_path)
    places = ["more", "{a,b}.tar", "photos"]
    out = survey(table, *(f"--unlabeled={path}" for path in places))
    assert "2 classes, 16 images of 7 to 20 pixels" in out
    for words in ("unlabelled: 4", "bad.png cannot", "b.tar/0003.png cannot", "test copy.png is"):
        assert words in out
    assert settings(tmp_path / "out")["unlabeled"] == [f"{tmp_path}/{path}" for path in places]
    monkeypatch.chdir("/")
    splits = splits_of(tmp_path / "out")
    tested = [f"{tmp_path}/photos/{name}/0.png" for name in ("cat", "dog")]
    assert ([record.source for record in splits.test], len(splits.train)) == (tested, 10)
    assert not splits.held_out
    left_out = [row["image"] for row in rows_of(tmp_path / "out/left_out.csv")]
    for paths, expected in (
        (list(splits.unlabeled), "more/new.png a.tar/0001.png a.tar/0002.png b.tar/0004.png"),
        (sorted(left_out), "b.tar/0003.png more/bad.png more/test_copy.png"),
    ):
        assert paths == [f"{tmp_path}/{name.replace('_', ' ')}" for name in expected.split()]


def test_images_without_any_label_take_a_list_of_names(tmp_path, survey):
    class_folders(tmp_path / "photos", unlabeled=9)
    (tmp_path / "names.txt").write_text("red ball\ngreen box\nblue tent\n")
    names = f"--class-names={tmp_path}/names.txt"
    out = survey(tmp_path / "photos", names)
    for words in ("unlabelled: 9", "none, so that the teacher"):
        assert words in out
    assert settings(tmp_path / "out")["shots"] == 0
    data = built(**settings(tmp_path / "out") | {"shots": 16})
    with pytest.raises(DataError, match="has no labelled training images"):
        data.train_dataloader_for("labeled", Resizing(32))
    image_folder(tmp_path / "photos", ("green box", "red ball"), images=2, splits=["test"])
    survey(tmp_path / "photos", names, out="tested")
    splits = splits_of(tmp_path / "tested")
    assert splits.class_names == ("red ball", "green box", "blue tent")
    assert (len(splits.test), len(splits.unlabeled)) == (4, 9)
    (tmp_path / "mine.csv").write_text("image\nphotos/unlabeled/1.png\n")
    survey(tmp_path / "mine.csv", names, out="table")
    splits = splits_of(tmp_path / "table")
    assert (splits.train, len(splits.unlabeled)) == ((), 1)


def test_what_cannot_be_surveyed_is_one_sentence_and_writes_nothing(tmp_path, capsys, monkeypatch):
    # folders and tables, and lists of names that fit none of them
    root = tmp_path / "odd"
    (root / "empty").mkdir(parents=True)
    class_folders(root / "pets", cat=2, dog=2)
    class_folders(root / "digits", {"0": 2, "1": 2})
    (class_folders(root / "unreadable", cat=2, dog=2, eel=1) / "eel/0.png").write_bytes(b"")
    for image in class_folders(root / "copied", cat=2, dog=2).glob("dog/*"):
        shutil.copy(image, root / "copied/cat" / f"copy {image.name}")
    class_folders(root / "cased/train", cat=2, Dog=2)
    (root / "torn.tar").write_bytes(b"x" * 2000)
    apart = "loose/1.png", "cased/test/dog/1.png"
    for i, path in enumerate(apart):
        picture(root / path, 1, 1, i)
    files = {
        "one.txt": "cat\n",
        "digits.txt": "zero\none\n",
        "odd.csv": "1,cat\n2,dog\x07bell\n",
        "bare.csv": "image,label\nloose/1.png,\n",
        "moved.csv": "image,label\nx/1.png,cat\nx/2.png,dog\n",
    }
    for name, text in files.items():
        (root / name).write_text(text)
    monkeypatch.chdir(root)
    for source, option, *words in (
        ("empty", "", "has no images in folders of classes", "--class-names"),
        ("empty", "--class-names=digits.txt", "has no readable image to train on"),
        ("loose", "--class-names=one.txt", "has one class, 'cat'"),
        ("loose", "--class-names=odd.csv", "has a class name that"),
        ("bare.csv", "", "has no labelled training image: "),
        ("unreadable", "", "class 'eel' in unreadable has no usable training image"),
        ("cased", "", "class 'dog' in cased has no", "rename it if it is the class 'Dog'"),
        ("copied", "", "dog/1.png is a copy of "),
        ("moved.csv", "", "none of the 2 images of moved.csv can be read"),
        ("pets", "--unlabeled=torn.tar", "torn.tar cannot be read"),
        ("digits", "--class-names=digits.txt", "digits.txt lacks class '0'", " a folder named unl"),
    ):
        refused(capsys, init(source, tmp_path / "out", *option.split()), *words)
    assert not (tmp_path / "out").exists()


def test_a_table_that_is_there_is_not_overwritten(tmp_path, capsys):
    table = pets_table(tmp_path).rename(tmp_path / "images.csv")
    before = files_of(tmp_path)
    refused(capsys, init(table, tmp_path), "images.csv exists already", "--overwrite")
    assert files_of(tmp_path) == before


def test_what_an_earlier_init_wrote_is_replaced_if_asked_and_nothing_of_it_stays(tmp_path, survey):
    root, out = class_folders(tmp_path / "pets"), tmp_path / "out"
    (root / "cat/0.png").write_bytes(b"")
    shutil.copy(root / "cat/1.png", tmp_path / "copy.png")
    survey(root, f"--unlabeled={tmp_path}/copy.png")
    assert (out / "left_out.csv").is_file()
    # the list may be its own source
    for source in (root, out / "images.csv"):
        (root / "cat/0.png").unlink(missing_ok=True)
        survey(source, "--overwrite", "--shots=3")
        assert len(listed(out)) == 15
        assert (settings(out)["shots"], settings(out).get("reading")) == (3, None)
        assert not (out / "left_out.csv").exists()


# --- labels and validation images ---


def test_all_labels_are_taken_unless_shots_says_otherwise_and_the_rest_is_said(tmp_path, survey):
    root = class_folders(tmp_path / "pets", cat=32, dog=11)
    # the class that has fewer than 10 gives all it has
    for option, count, rest in (
        ("--overwrite", 32, ""),
        ("--shots=10", 18, "; in no stage: 14 (shots 10)"),
    ):
        survey(root, option, out=option)
        labels = built(**settings(tmp_path / option)).labels
        assert len(labels.training()) == count
        said = f"labels in the batches of stage 1: {count} of 32; validation: 0 of 0{rest}"
        assert labels.counts_in_stage(1) == said


@pytest.mark.parametrize(
    ("images", "options", "val", "train"),
    [
        ((8, 8, 3), [], (0, 0, 0), (6, 6, 2)),
        ((40, 40), [], (0, 0), (30, 30)),  # 12 images would be too few for anything
        ((80, 48, 9), [], (12, 7, 0), (48, 29, 7)),
        ((80, 9), ["--val-share=20%"], (12, 1), (48, 6)),
        ((2, 2), ["--val-share=0.9"], (0, 0), (1, 1)),  # one stays
    ],
)
def test_images_to_test_and_to_validate_on_are_split_off_by_chance_and_said(
    images, options, val, train, tmp_path, survey
):
    numbers = dict(zip(("cat", "dog", "eel"), images, strict=False))
    said = survey(class_folders(tmp_path / "pets", numbers), *options)
    rows = listed(tmp_path / "out")
    counts = Counter(row[1:] for row in rows)
    assert tuple(counts[name, "val"] for name in numbers) == val
    assert tuple(counts[name, "train"] for name in numbers) == train
    tested = sum(images) - sum(val) - sum(train)
    assert f"test: {tested}, a quarter of each class, held out by chance" in said
    assert ("split off (init --val-share)" in said) == (sum(val) > 0)
    assert ("20% of each class with 8 labels or more, split" in said) == (val == (12, 7, 0))
    survey(tmp_path / "pets", *options, out="again")
    assert listed(tmp_path / "again") == rows
    # the splits of a list are kept, and no more validation images are split off
    more = "--val-share=50%" if any(val) else "--val-share=0"
    survey(tmp_path / "out/images.csv", more, out="third")
    assert sorted(listed(tmp_path / "third")) == sorted(rows)
    assert splits_of(tmp_path / "third").held_out


def test_images_that_a_mirror_would_change_are_not_mirrored_and_words_for_names_are_taken(
    tmp_path, survey, monkeypatch
):
    assert "light_affine" in survey(class_folders(tmp_path / "digits", seven=3, eight=3))
    assert settings(tmp_path / "out")["augmentation"] == "light_affine"
    class_folders(tmp_path / "pets", {"7": 8, "class_07": 8})
    text = 'label,name,text\n7,tench,"tench, a fish"\nclass_07,hen,\n'
    (tmp_path / "names.csv").write_text(text)
    monkeypatch.chdir(tmp_path)
    survey("pets", "--class-names=names.csv", out="pets out")
    monkeypatch.chdir("/")
    assert "augmentation" not in settings(tmp_path / "pets out")
    splits = splits_of(tmp_path / "pets out")
    assert (splits.class_names, splits.class_texts) == (("tench", "hen"), ("tench, a fish", "hen"))


def test_a_template_for_several_texts_is_written_and_kept_as_it_was_filled_in(tmp_path, survey):
    pets, template = class_folders(tmp_path / "pets"), tmp_path / "out" / "class_names.csv"
    assert f"in several texts each: fill in {template}, and give it as --class-names" in survey(
        pets
    )
    assert rows_of(template) == [
        {"label": name, "name": name, "text": ""} for name in ("cat", "dog")
    ]
    # as it is, it changes nothing
    survey(pets, f"--class-names={template}", out="same")
    assert splits_of(tmp_path / "same").class_texts is None
    filled = template.read_text().replace("cat,cat,,", "cat,cat,tabby,cat on a sofa")
    template.write_text(filled)
    survey(pets, "--overwrite")
    assert template.read_text() == filled
    said = survey(pets, f"--class-names={template}", out="told")
    assert "fill in" not in said
    assert splits_of(tmp_path / "told").class_texts == (("tabby", "cat on a sofa"), "dog")
