import csv
import shlex
import shutil
from collections import Counter, defaultdict
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from runs import CONFIGS, SHORT, configs, error_line, files_of, image_folder, noise, rows_of
from zoo import odd_photo, tag, write_shard

from kdpl import Classifier, DomainDataModule
from kdpl.__main__ import main
from kdpl.cli.init_summary import ENOUGH
from kdpl.data.domain import build_data
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.predictions import read_results
from kdpl.runtime.resizing import Resizing
from kdpl.student import StudentDistillation


def picture(path, *colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), colour).save(path)


def plain_folders(root, classes=("cat", "dog"), images=8):
    """``<class>/…`` without splits, each image of another colour."""
    for number, name in enumerate(classes):
        for i in range(images):
            picture(root / name / f"{i}.png", 60 * number, 20 * i, 9)
    return root


def pets_table(folder):
    """A table beside its images, in the order of its rows, with one of six images of each class for the test."""
    plain_folders(folder / "photos", images=6)
    rows = [
        (f"photos/{name}/{i}.png", name, "" if i else "test")
        for name in ("cat", "dog")
        for i in range(6)
    ]
    with (folder / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label", "split"), *rows])
    return folder / "mine.csv"


def init(folder, out, *more):
    return main(["init", str(folder), f"--out={out}", "--workers=1", *more])


def listed(out):
    return [
        (Path(row["image"]).name, row["label"], row["split"]) for row in rows_of(out / "images.csv")
    ]


def settings(out):
    return yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))["data"]["init_args"]


def built(**settings):
    """A datamodule of settings as configs have them."""
    return build_data([{"init_args": {"num_workers": 0, **settings}}])


def splits_of(out):
    """The dataset as a run of the written config takes it."""
    return built(**settings(out)).splits


def test_splits_that_are_there_are_kept_and_bad_images_and_copies_left_out(tmp_path, capsys):
    root = image_folder(tmp_path / "pets", images=5)
    picture(root / "unlabeled/deep/x.png", 1, 2, 3)
    (root / "train/cat/torn.png").write_bytes((root / "train/cat/0.png").read_bytes()[:40])
    shutil.copy(root / "test/dog/1.png", root / "train/dog/leak.png")
    shutil.copy(root / "train/cat/1.png", root / "train/dog/wrong.png")
    assert init(root, tmp_path / "out") == 0
    rows = listed(tmp_path / "out")
    assert len(rows) == 21
    assert rows.count(("0.png", "cat", "train")) == rows.count(("0.png", "cat", "test")) == 1
    assert ("x.png", "", "train") in rows
    assert not {"torn.png", "leak.png", "wrong.png"} & {name for name, *_ in rows}
    out = capsys.readouterr().out
    for words in (
        "2 classes, 21 images of 16 to 40 pixels",
        "unlabelled: 1",
        "torn.png cannot be read",
        f"leak.png is a copy of {root}/test/dog/1.png (test)",
        " of class cat, not dog: correct one of the labels",
    ):
        assert words in out


def test_images_of_one_colour_or_nearly_so_are_named_and_stay(tmp_path, capsys):
    root = tmp_path / "pets"
    for i in range(8):
        (root / f"{'cat' if i % 2 else 'dog'}").mkdir(parents=True, exist_ok=True)
        noise(20, 16, seed=i).save(root / f"{'cat' if i % 2 else 'dog'}/{i}.png")
    assert init(root, tmp_path / "out") == 0
    assert "of one colour" not in capsys.readouterr().out
    picture(root / "cat/grey.png", 90, 90, 90)
    # 12 bits in 16, which a PNG file cannot say
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(root / "dog/dark.png")
    assert init(root, tmp_path / "again") == 0
    said = f"  images of one colour, or nearly so: 2 ({root}/cat/grey.png, {root}/dog/dark.png): look whether"
    assert said in capsys.readouterr().out
    assert len(listed(tmp_path / "again")) == 10


def test_images_of_one_size_are_said_to_have_that_size(tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(2):
            noise(32, 32, seed=10 * i + ord(name[0])).save(tmp_path / "pets" / name / f"{i}.png")
    assert init(tmp_path / "pets", tmp_path / "out") == 0
    assert "2 classes, 4 images of 32 pixels an edge\n" in capsys.readouterr().out


def test_without_test_images_a_quarter_of_each_class_is_held_out_and_said_so(tmp_path, capsys):
    root = plain_folders(tmp_path / "pets")
    for i in range(3):
        picture(root / "eel" / f"{i}.png", 200, 9 * i, 0)
    assert init(root, tmp_path / "out") == 0
    rows = listed(tmp_path / "out")
    for name, held_out, train in (("cat", 2, 6), ("dog", 2, 6), ("eel", 1, 2)):
        assert sum(row[1:] == (name, "held_out") for row in rows) == held_out
        assert sum(row[1:] == (name, "train") for row in rows) == train
    out = capsys.readouterr().out
    assert "test: 5, a quarter of each class, held out by chance" in out
    assert "fewer than 4 of: eel: label more" in out
    assert (
        "shots: null  # all labelled images, of the smallest class 2"
        in (tmp_path / "out/data.yaml").read_text()
    )
    assert init(root, tmp_path / "again") == 0
    assert listed(tmp_path / "again") == rows
    # a run says so too, and so does a look at what the first one wrote
    assert splits_of(tmp_path / "out").held_out
    assert init(tmp_path / "out/images.csv", tmp_path / "third") == 0
    assert splits_of(tmp_path / "third").held_out


class _CheckedError(Exception):
    """Raised where a run's first step would begin."""


@pytest.mark.parametrize(("labels", "more"), [(1, ()), (9, ()), (9, ("--shots=0",))])
def test_each_run_that_init_prints_has_refined_targets_and_settings_that_hold_in_another_folder(
    labels, more, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "my pets", images=labels)
    assert init("my pets", "my out", *more) == 0
    offline, published = commands_of(capsys.readouterr().out)
    assert "--data.init_args.augmentation light_affine" in shlex.join(offline)
    assert offline.count("quickstart") == 2
    assert "promptsrc_vit_l14" in published

    def checked(*_):
        raise _CheckedError

    monkeypatch.setattr("kdpl.cli.run._do", checked)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for words in (offline, published):
        assert "--student refined" in shlex.join(words)
        if words is published:
            # its weights cannot be fetched here
            monkeypatch.setattr(StudentDistillation, "require_possible", lambda *_: None)
        with pytest.raises(_CheckedError):
            main(words[3:])
        out = Path(words[words.index("--out") + 1])
        assert out.parent == tmp_path
    assert not list(Path().iterdir())


@pytest.mark.parametrize(("rare", "said"), [(1, True), (3, False)])
def test_balanced_classes_are_mentioned_where_the_numbers_of_labels_differ_much(
    rare, said, tmp_path, capsys
):
    root = image_folder(tmp_path / "pets", images=9)
    for i in range(rare, 9):
        (root / f"train/cat/{i}.png").unlink()
    assert init(root, tmp_path / "out") == 0
    assert (
        "add --data.init_args.balance_classes true to the command" in capsys.readouterr().out
    ) == said


def test_images_that_it_does_not_take_are_counted_by_folder_and_kind(tmp_path, capsys):
    root = image_folder(tmp_path / "pets", splits=("train", "valid"), images=3)
    for number, path in enumerate(
        (
            "train/unlabeled/a.jfif",
            "Unlabelled_images/a.png",
            "loose.png",
            "train/loose.png",
            "old/cat/b.png",
        )
    ):
        picture(root / path, 1, 2, number)
    (root / "eel").mkdir()
    for name in ("a.heic", "b.HEIC"):
        (root / "train" / "cat" / name).touch()
    assert init(root, tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "unlabelled: 2" in out
    assert "val: 6" in out
    folders = [
        f"1 image in {root}{place}, which is not a class folder "
        "(images without labels go into a folder called unlabeled)"
        for place in ("", "/train", "/old/cat")
    ]
    not_taken = {
        line.removeprefix("  not taken: ") for line in out.splitlines() if "not taken" in line
    }
    assert not_taken == {
        *folders,
        "2 .heic files, which cannot be read: convert",
        f"folder {root}/eel, which is empty",
    }


def test_names_that_say_nothing_and_the_augmentation_are_pointed_out_and_the_next_command_is_quoted(
    tmp_path, capsys
):
    root = plain_folders(
        tmp_path / "my pets", classes=("7", "class_07", "n01440764", "b", "cat2 dog")
    )
    assert init(root, tmp_path / "my out") == 0
    out = capsys.readouterr().out
    mute = "7, b, class_07, n01440764: give words for all classes by --class-names, a .csv with lines such as 7,WORDS"
    assert f"names that tell the text tower nothing: {mute}\n" in out
    assert "--data.init_args.augmentation light_affine" in out
    *_, command = out.splitlines()
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "kdpl", "run"]
    assert words[words.index("--config") + 1] == f"{tmp_path}/my out/data.yaml"
    gpu = shutil.which("nvidia-smi") is not None
    assert f"trainer/{'gpu' if gpu else 'cpu'}" in words
    assert ("no GPU was found: " in out) == (not gpu)


def test_words_for_such_names_are_read_from_a_file_and_a_run_takes_them(
    tmp_path, capsys, monkeypatch
):
    text = 'label,name,text\n7,tench,"tench, a fish"\nclass_07,hen,\n'
    plain_folders(tmp_path / "pets", classes=("7", "class_07"))
    (tmp_path / "names.csv").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert init("pets", "out", "--class-names=names.csv") == 0
    assert "tell the text tower nothing" not in capsys.readouterr().out
    monkeypatch.chdir("/")
    splits = splits_of(tmp_path / "out")
    assert (splits.class_names, splits.class_texts) == (("tench", "hen"), ("tench, a fish", "hen"))


@pytest.mark.parametrize(
    "text", ["7,hen\n8,class_08\n", "label,name,text,text\n7,class_7,7,hen\n8,class_08,8,class_8\n"]
)
def test_names_that_still_say_nothing_are_pointed_out(text, tmp_path, capsys):
    root = plain_folders(tmp_path / "pets", classes=("7", "8"))
    (tmp_path / "names.csv").write_text(text)
    assert init(root, tmp_path / "out", f"--class-names={tmp_path}/names.csv") == 0
    assert "tell the text tower nothing: class_08: give" in capsys.readouterr().out


def test_validation_images_of_ones_own_are_all_used(tmp_path):
    root = image_folder(tmp_path / "pets")
    for i in range(12):
        picture(root / "val" / ("cat", "dog")[i % 2] / f"{i}.png", 9, 9 * i, 255)
    assert init(root, tmp_path / "out") == 0
    own = [settings(tmp_path / "out")]
    own += [
        {
            **yaml.safe_load((CONFIGS / f"data/{name}.yaml").read_text())["data"]["init_args"],
            "root": str(where),
        }
        for name, where in (("folder", root), ("table", tmp_path / "out/images.csv"))
    ]
    for each in own:
        data = built(**{"allow_fewer_shots": True, **each})
        assert len(data.evaluation_dataloader_for("val", Resizing(32)).dataset) == 12


def test_an_image_whose_path_is_not_utf8_is_named_and_left_out(tmp_path, capsys):
    root = plain_folders(tmp_path / "pets")
    (root / "cat" / "0.png").rename(root / "cat" / "\udcff.png")
    picture(tmp_path / "more" / "good.png", 1, 2, 3)
    picture(tmp_path / "more" / "\udcff.png", 3, 2, 1)
    assert init(root, tmp_path / "out", f"--unlabeled={tmp_path / 'more'}") == 0
    said = capsys.readouterr().out
    assert all(
        rf"{place}/\udcff.png has a path that is not UTF-8" in said for place in ("cat", "more")
    )
    assert len(listed(tmp_path / "out")) == 15
    sources = splits_of(tmp_path / "out").sources
    assert len(sources) == 16
    assert not any("\udcff" in source for source in sources)


@pytest.mark.parametrize("name", ["mine.csv", "mine.parquet"])
def test_a_table_keeps_its_splits_and_its_images_are_found_from_elsewhere(name, tmp_path):
    table, out = pets_table(tmp_path), tmp_path / "out"
    (tmp_path / "photos/dog/5.png").write_bytes(b"")
    if name == "mine.parquet":
        rows = pytest.importorskip("pyarrow").Table.from_pylist(rows_of(table))
        pytest.importorskip("pyarrow.parquet").write_table(rows, tmp_path / name)
    assert init(tmp_path / name, out) == 0
    splits = splits_of(out)
    assert [Path(record.source).name for record in splits.test] == ["0.png", "0.png"]
    assert len(splits.train) == 9
    assert all(Path(source).is_file() for source in splits.sources)
    assert not splits.held_out


def test_a_group_is_in_one_split_stays_with_its_images_and_counts_once(tmp_path, capsys):
    for i in range(24):
        picture(tmp_path / f"{i:02}.png", 10 * i, 3 * i, 200)
    rows = "".join(f"{i:02}.png,{'cat' if i % 2 else 'dog'},camera {i // 3}\n" for i in range(24))
    (tmp_path / "mine.csv").write_text(f"image,label,group\n{rows}")
    assert init(tmp_path / "mine.csv", tmp_path / "out", "--val-share=30%") == 0
    splits_by_group = defaultdict(set)
    for row in rows_of(tmp_path / "out/images.csv"):
        assert row["group"] == f"camera {int(Path(row['image']).stem) // 3}"
        splits_by_group[row["group"]].add(row["split"])
    assert all(len(splits) == 1 for splits in splits_by_group.values())
    numbers = Counter(split for splits in splits_by_group.values() for split in splits)
    assert numbers == {"held_out": 2, "val": 2, "train": 4}
    assert splits_of(tmp_path / "out").groups
    said = capsys.readouterr().out
    assert "  val: 6," in said
    assert "  validation images, one of each group: 2; enough would be 19 for predict" in said


def test_further_places_are_looked_at_and_what_is_bad_or_a_copy_there_is_left_out(
    tmp_path, capsys, monkeypatch
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
    assert init(table, tmp_path / "out", *(f"--unlabeled={each}" for each in places)) == 0
    said = capsys.readouterr().out
    for words in (
        "unlabelled: 4",
        "bad.png cannot be read",
        "b.tar/0003.png cannot be read",
        "test copy.png is",
    ):
        assert words in said
    assert settings(tmp_path / "out")["unlabeled"] == [f"{tmp_path}/{each}" for each in places]
    monkeypatch.chdir("/")
    found = [
        source.removeprefix(f"{tmp_path}/") for source in splits_of(tmp_path / "out").unlabeled
    ]
    assert found == ["more/new.png", "a.tar/0001.png", "a.tar/0002.png", "b.tar/0004.png"]
    left_out = [
        row["image"].removeprefix(f"{tmp_path}/") for row in rows_of(tmp_path / "out/left_out.csv")
    ]
    assert sorted(left_out) == [
        "b.tar/0003.png",
        "more/bad.png",
        "more/test copy.png",
        "more/test link.png",
    ]


@pytest.mark.slow
def test_what_it_writes_of_a_table_and_shards_is_run(tmp_path):
    write_shard(tmp_path / "a.tar", range(8))
    table, written, run = pets_table(tmp_path), tmp_path / "runs/pets", tmp_path / "runs/pets_run"
    (tmp_path / "photos/dog/5.png").write_bytes(b"")
    odd_photo(tmp_path / "photos/dog/0.png")
    assert init(table, written, f"--unlabeled={tmp_path}/a.tar") == 0
    stages = [f"--{stage}={CONFIGS}/{stage}/quickstart.yaml" for stage in ("teacher", "student")]
    short = [*SHORT, "--data.init_args.num_workers=0", "--data.init_args.batch_size=4"]
    config = [f"--config={written}/data.yaml", *configs("trainer/cpu.yaml")]
    assert main(["run", *config, *stages, f"--out={run}", *short]) == 0
    for stage in ("teacher", "student"):
        assert len(rows_of(run / stage / "test_predictions.csv")) == 2
    tested = rows_of(run / "student/test_predictions.csv")
    predictions = Classifier.load(run / "student/classifier").predict(
        [row["source"] for row in tested]
    )
    for row, (found,) in zip(tested, predictions, strict=True):
        assert (row["prediction"], float(row["probability"])) == (
            found.class_name,
            pytest.approx(found.probability),
        )


def commands_of(printed):
    """The runs that init printed, as words: the one of the miniature CLIPs, and the one of the published CLIPs."""
    lines = map(str.strip, printed.splitlines())
    return [shlex.split(line) for line in lines if line.startswith("python -m kdpl run")]


def run_as_printed(printed, *more):
    """Run what init printed for the CLIPs that need no network, in another folder."""
    words, _ = commands_of(printed)
    with chdir("/"):
        return main([*words[3:], *SHORT, "--data.init_args.batch_size=4", *more])


def strangers_folder(root):
    """Photos with the common flaws: transparency, orientation tags, a folder Train, numbers as names, a rare class."""
    for number, count in enumerate((20, 12, 1)):
        for i in range(count + 4):
            split, image = (
                "Train" if i < count else "Validation",
                noise(96, 72, seed=100 * number + i),
            )
            if i % 4 == 1:
                image.putalpha(image.convert("L"))
            path = root / split / str(number) / f"IMG_{i:04}.{'png' if i % 4 == 1 else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, **({"exif": tag(6)} if i % 4 == 2 else {}))
    (root / "Train/0/phone.heic").touch()
    (root / "Train/1/torn.jpg").touch()
    return root


@pytest.mark.slow
def test_a_strangers_folder_is_described_and_run_as_advised_without_a_file_edited(
    tmp_path, capsys, monkeypatch
):
    root = strangers_folder(tmp_path / "my photos")
    monkeypatch.chdir(tmp_path)
    assert init(root, "first look") == 0
    out = capsys.readouterr().out
    for words in (
        *("3 classes", "train: 25", "test: 8, a quarter of each class, held out", "val: 12"),
        *(
            "fewer than 4 of: 2: label more",
            "no test image of: 2",
            "text tower nothing: 0, 1, 2: give words",
        ),
        *("1 .heic file, which cannot be read: convert", "torn.jpg cannot be read"),
    ):
        assert words in out
    (tmp_path / "names.csv").write_text("0,red ball\n1,green box\n2,blue tent\n")
    assert init(root, "with names", "--class-names=names.csv") == 0
    out = capsys.readouterr().out
    assert "nothing" not in out
    assert "fewer than 4 of: blue tent" in out
    assert run_as_printed(out) == 0
    printed = capsys.readouterr()
    assert "held out" in printed.out.partition("accuracy on 8 test images")[2]
    assert "8 labelled images are held out for the test" in printed.err
    assert read_results(tmp_path / "with names_offline/student")["held_out"]
    classifier = Classifier.load(tmp_path / "with names_offline/student/classifier")
    assert classifier.class_names == ("red ball", "green box", "blue tent")


def photos(folder, count, seed=0):
    folder.mkdir(parents=True)
    for i in range(count):
        noise(40, 36, seed=seed + i).save(folder / f"{i}.png")


@pytest.mark.slow
@pytest.mark.parametrize("tested", [False, True])
def test_images_without_any_label_and_a_list_of_names_are_run_as_advised(
    tested, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    photos(Path("my photos/unlabeled" if tested else "my photos"), 9)
    (tmp_path / "names.txt").write_text("red ball\ngreen box\nblue tent\n")
    for number, name in enumerate(["green box", "red ball"][: 2 * tested]):
        photos(Path("my photos/test") / name, 2, seed=100 + 10 * number)
    assert init("my photos", "mine", "--class-names=names.txt") == 0
    out = capsys.readouterr().out
    for words in ("3 classes", "unlabelled: 9", "none, so that the teacher is the original CLIP"):
        assert words in out
    assert (
        "no test image of: blue tent" if tested else "no test image: label some, in test/<class>/"
    ) in out
    assert settings(tmp_path / "mine")["shots"] == 0
    assert run_as_printed(out) == 0
    assert (
        "accuracy on 4 test images" if tested else "nothing was tested"
    ) in capsys.readouterr().out
    classifier = Classifier.load("mine_offline/student/classifier")
    assert classifier.class_names == ("red ball", "green box", "blue tent")
    assert Path("mine_offline/report.html").is_file()


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ("image\nphotos/cat/1.png\nphotos/dog/2.png\n", []),
        ("image,label,split\nphotos/cat/1.png,7,test\nphotos/dog/2.png,,\n", ["7"]),
    ],
)
def test_a_table_without_a_label_to_train_on_and_names_is_written_as_a_run_takes_it(
    content, labels, tmp_path
):
    plain_folders(tmp_path / "photos")
    (tmp_path / "mine.csv").write_text(content)
    (tmp_path / "names.csv").write_text("8,hen\n7,tench\n")
    assert init(tmp_path / "mine.csv", tmp_path / "out", f"--class-names={tmp_path}/names.csv") == 0
    splits = splits_of(tmp_path / "out")
    assert (splits.class_names, splits.train) == (("hen", "tench"), ())
    assert [splits.class_names[record.label] for record in splits.test] == ["tench"] * len(labels)
    assert len(splits.unlabeled) == 2 - len(labels)
    assert [label for _, label, _ in listed(tmp_path / "out") if label] == labels


def test_what_needs_labels_says_so_where_there_are_none(tmp_path):
    photos(tmp_path / "photos", 2)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert init(tmp_path / "photos", tmp_path / "out", f"--class-names={tmp_path}/names.txt") == 0
    data = built(**settings(tmp_path / "out") | {"shots": 16})
    with pytest.raises(
        DataError, match="has no labelled training images: add some, or set shots to 0"
    ):
        data.train_dataloader_for("labeled", Resizing(32))


@pytest.mark.parametrize(
    ("source", "more", "words"),
    [
        ("empty", [], "has no images in folders of classes: "),
        (
            "empty",
            [],
            "or write a list of the classes and give it as --class-names to use no labels",
        ),
        (
            "empty",
            ["--class-names=names.txt"],
            "has no readable image to train on: add some, or give --unlabeled",
        ),
        (
            "loose",
            ["--class-names=one.txt"],
            "has one class, 'cat', expected several: write a name on each line",
        ),
        ("loose", ["--class-names=odd.csv"], "has a class name that"),
        ("loose", ["--class-names=none.txt"], "none.txt names no class: write a name on each line"),
        ("untested", ["--class-names=one.txt"], "one.txt lacks class 'dog'"),
        ("bare.csv", [], "no row with a label: "),
        ("unreadable", [], "class 'eel' in unreadable has no usable training image (image "),
        ("copied", [], "dog/7.png is a copy of "),
        ("misnamed", [], "has a class name that"),
        ("gone.csv", [], "gone.csv"),
        ("pets", ["--unlabeled=gone/"], "gone"),
        ("pets", ["--unlabeled=torn.tar"], "torn.tar is damaged"),
        ("pets", ["--class-names=gone.csv"], "gone.csv cannot be read (No such file"),
        ("pets", ["--class-names=few.csv"], "few.csv lacks class 'dog'"),
        (
            "pets",
            ["--class-names=more.csv"],
            "more.csv names class 'eel', which the dataset does not have",
        ),
    ],
)
def test_what_cannot_be_surveyed_is_one_sentence_and_writes_nothing(
    source, more, words, tmp_path, capsys, monkeypatch
):
    (tmp_path / "empty").mkdir()
    plain_folders(tmp_path / "pets")
    picture(plain_folders(tmp_path / "unreadable") / "eel/1.png", 1, 1, 1)
    (tmp_path / "unreadable/eel/1.png").write_bytes(b"")
    for image in plain_folders(tmp_path / "copied").glob("dog/*"):
        shutil.copy(image, tmp_path / "copied/cat")
    plain_folders(tmp_path / "misnamed", classes=("cat", "dog\nline"))
    (tmp_path / "torn.tar").write_bytes(b"x" * 2000)
    picture(tmp_path / "loose/1.png", 1, 1, 1)
    picture(tmp_path / "untested/1.png", 1, 1, 1)
    picture(tmp_path / "untested/test/dog/1.png", 1, 1, 2)
    for name, text in {"names": "cat\ndog\n", "one": "cat\n", "none": "\n"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "odd.csv").write_text("1,cat\n2,dog\x07bell\n")
    (tmp_path / "bare.csv").write_text("image,label\nloose/1.png,\n")
    (tmp_path / "few.csv").write_text("cat,a cat\n")
    (tmp_path / "more.csv").write_text("cat,a cat\ndog,a dog\neel,an eel\n")
    monkeypatch.chdir(tmp_path)
    assert init(source, "out", *more) == 1
    error_line(capsys, words)
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["data.yaml", "images.csv"])
def test_a_config_or_table_that_is_there_is_not_overwritten(name, tmp_path, capsys):
    table = pets_table(tmp_path).rename(tmp_path / name)
    before = files_of(tmp_path)
    assert init(table if name == "images.csv" else tmp_path / "photos", tmp_path) == 1
    error_line(capsys, f"{name} exists already: choose another --out, or give --overwrite")
    assert files_of(tmp_path) == before


def test_what_an_earlier_init_wrote_is_replaced_if_asked_and_nothing_of_it_stays(tmp_path):
    root, out = plain_folders(tmp_path / "pets"), tmp_path / "out"
    (root / "cat/0.png").write_bytes(b"")
    shutil.copy(root / "cat/1.png", tmp_path / "copy.png")
    assert init(root, out, f"--unlabeled={tmp_path}/copy.png") == 0
    assert (out / "left_out.csv").is_file()
    # the list may be its own source
    for source in (root, out / "images.csv"):
        (root / "cat/0.png").unlink(missing_ok=True)
        assert init(source, out, "--overwrite", "--shots=3") == 0
        assert len(listed(out)) == 15
        assert (settings(out)["shots"], settings(out).get("reading")) == (3, None)
        assert not (out / "left_out.csv").exists()


# --- labels and validation images ---


def many(root, **classes):
    """``<class>/…``, with so many images of each class, each of another colour."""
    for number, (name, images) in enumerate(classes.items()):
        for i in range(images):
            picture(root / name / f"{i}.png", 40 * number, i, 7)
    return root


def test_all_labels_are_taken_unless_shots_says_otherwise_and_what_is_left_is_said(
    tmp_path, capsys
):
    root = many(tmp_path / "pets", cat=32, dog=12)
    assert init(root, tmp_path / "all") == 0
    assert "are used in no stage" not in capsys.readouterr().out
    data = built(**settings(tmp_path / "all"))
    assert settings(tmp_path / "all")["shots"] is None
    assert len(data.labels.training()) == 24 + 9
    assert (
        data.labels.counts_in_stage(1, data.labels.training())
        == "labels in the batches of stage 1: 33 of 33; validation: 0 of 0"
    )
    assert init(root, tmp_path / "few", "--shots=10") == 0
    assert (
        "  14 of these 33 labels are used in no stage, as --shots is 10\n"
        in capsys.readouterr().out
    )
    data = built(**settings(tmp_path / "few"))
    # the class that has fewer gives all it has
    assert len(data.labels.training()) == 10 + 9
    said = (
        "labels in the batches of stage 2: 0 of 33; validation: 0 of 0; in no stage: 14 (shots 10)"
    )
    assert data.labels.counts_in_stage(2, []) == said


@pytest.mark.parametrize(
    ("protocol", "shots", "said"),
    [
        ("all", None, "0 of 12; validation: 6 of 6"),
        ("all", 0, "0 of 12; validation: 0 of 6; in no stage: 18 (shots 0)"),
        (
            "base_to_novel",
            3,
            "0 of 12; validation: 6 of 6; in no stage: 6 (shots 3, protocol base_to_novel)",
        ),
    ],
)
def test_labels_that_no_stage_sees_are_counted(protocol, shots, said, tmp_path):
    root = image_folder(tmp_path / "pets", classes=("cat", "dog", "eel"), splits=("train", "test"))
    for name in ("cat", "dog", "eel"):
        for i in range(2):
            picture(root / "val" / name / f"{i}.png", ord(name[0]), i, 200)
    data = DomainDataModule(
        "folder", str(root), protocol=protocol, shots=shots, val_shots=None, num_workers=0
    )
    assert data.labels.counts_in_stage(2, []) == f"labels in the batches of stage 2: {said}"
    if shots != 0:
        assert f"validation: {len(data.labels.evaluation('val'))} of 6" in said


def test_validation_images_are_split_off_where_labels_are_many_and_config_and_list_say_so(
    tmp_path, capsys
):
    root, out = many(tmp_path / "pets", cat=80, dog=48, eel=9), tmp_path / "out"
    assert init(root, out) == 0
    rows, counts = listed(out), Counter(row[1:] for row in listed(out))
    assert [counts[name, "val"] for name in ("cat", "dog", "eel")] == [12, 7, 0]
    assert [counts[name, "train"] for name in ("cat", "dog", "eel")] == [48, 29, 7]
    note = "20% of each class with 8 labels or more, split off (--val-share) by chance with seed 0"
    said = capsys.readouterr().out
    assert f"  val: 19, {note}\n" in said
    assert "  validation images: 19; enough would be 59 for --max-error 5%" in said
    assert "and its validation images were split off them." in (out / "data.yaml").read_text()
    data = built(**settings(out))
    assert len(data.evaluation_dataloader_for("val", Resizing(32)).dataset) == 19
    assert init(root, tmp_path / "again") == 0
    assert listed(tmp_path / "again") == rows
    # those of a list are kept, and none are split off them
    assert init(out / "images.csv", tmp_path / "third", "--val-share=50%") == 0
    assert sorted(listed(tmp_path / "third")) == sorted(rows)


@pytest.mark.parametrize(
    ("classes", "more", "val"),
    [
        ({"cat": 8, "dog": 9}, [], 0),  # 6 and 7 labels are left of those that are tested
        ({"cat": 40, "dog": 40}, [], 0),  # 12 images would be too few for anything
        ({"cat": 80, "dog": 80}, ["--val-share=0"], 0),
        ({"cat": 80, "dog": 80}, [], 24),
        ({"cat": 80, "dog": 9}, ["--val-share=20%"], 13),
        ({"cat": 80, "dog": 80}, ["--val-share=0.5"], 60),
        ({"cat": 4, "dog": 4}, ["--val-share=0.4"], 2),
        ({"cat": 2, "dog": 2}, ["--val-share=0.9"], 0),  # one stays
    ],
)
def test_how_many_validation_images_are_split_off(classes, more, val, tmp_path, capsys):
    assert init(many(tmp_path / "pets", **classes), tmp_path / "out", *more) == 0
    splits = Counter(split for *_, split in listed(tmp_path / "out"))
    assert splits["val"] == val
    assert splits["train"] >= len(classes)
    said = capsys.readouterr().out
    assert ("no validation image: nothing decides" in said) == (val == 0)
    assert ("split off (--val-share)" in said) == (val > 0)


def test_what_a_missing_validation_split_costs_is_said_and_the_numbers_are_those_of_the_code(
    tmp_path, capsys
):
    assert init(plain_folders(tmp_path / "pets"), tmp_path / "out") == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "nothing decides if refined targets are better",
        "no temperature and no thresholds (predict --max-error, --sets)",
        "more than 5 % of new images exceed the limit of predict --unknown",
        "watch does not ask if more are of none of the classes",
        "label some, in val/<class>/ or with split val, or take some of the labels above by --val-share 20%",
        "enough would be 19 for predict --unknown, 59 for --max-error 5%, 100 for --calibrated, 299 for --max-error 1%",
    ):
        assert words in said
    held_out = pytest.importorskip("kdpl.confidence.held_out")
    unknown = pytest.importorskip("kdpl.confidence.unknown")
    # of N images and a new one, each is equally likely to be the most unusual: N / (N + 1) are below it at most
    assert (
        min(n for n in range(1, 99) if unknown.usual_rank(n) / (n + 1) >= unknown.USUAL)
        == ENOUGH["predict --unknown"]
    )
    for error in (0.05, 0.01):
        right = ENOUGH[f"--max-error {error:.0%}"]
        for images, enough in ((right, True), (right - 1, False)):
            ones = torch.ones(images)
            scores = held_out.HeldOutScores(1.0, ones, ones, ones.bool())
            if enough:
                assert scores.threshold(error) == 1
            else:
                with pytest.raises(ConfigError, match=f"it takes {right} held-out images"):
                    scores.threshold(error)


def test_a_list_of_names_for_folders_with_other_names_is_answered_with_what_to_write(
    tmp_path, capsys
):
    root = plain_folders(tmp_path / "digits", classes=("0", "1"))
    (tmp_path / "names.txt").write_text("zero\none\n")
    assert init(root, tmp_path / "out", f"--class-names={tmp_path}/names.txt") == 1
    error_line(capsys, "names.txt lacks class '0': ", "by a .csv file with lines such as 0,zero")


# --- advice is code ---


def test_each_command_that_is_printed_runs_in_another_folder_with_the_options_that_were_given(
    tmp_path, capsys, monkeypatch
):
    """From images with digits for names, by all that init, run and suggest advise, to labels that were filled in."""
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        photos(Path("my digits") / str(number), 12, seed=50 * number)
    photos(Path("more images"), 6, seed=200)
    Path("names.csv").write_text("0,zero\n1,one\n")
    given = ["--class-names=names.csv", "--unlabeled=more images", "--shots=5", "--val-share=30%"]
    assert init("my digits", "first look", *given) == 0
    printed = capsys.readouterr().out
    assert run_as_printed(printed, "--trainer.max_epochs=1", "--data.init_args.num_workers=0") == 0
    trained = capsys.readouterr()
    assert (
        "labels in the batches of stage 1: 10 of 12; validation: 6 of 6; in no stage: 2 (shots 5)"
        in trained.err
    )
    assert (
        "labels in the batches of stage 2: 0 of 12; validation: 6 of 6; in no stage: 2 (shots 5)"
        in trained.err
    )
    predict = shlex.split(
        trained.out.splitlines()[-1].removeprefix("use it: ").replace("IMAGES…", "'more images'")
    )
    assert main(predict[3:]) == 0
    assert capsys.readouterr().out.count("more images/") == 6
    assert main(["suggest", "first look_offline", "--out=to label", "--images=2"]) == 0
    *_, command = capsys.readouterr().out.splitlines()
    rows = rows_of("to label/labels.csv")
    with Path("to label/labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("image", "label"), *((row["image"], row["label"] or "one") for row in rows)]
        )
    with chdir("/"):
        assert main(shlex.split(command)[3:]) == 0
    *_, command = capsys.readouterr().out.splitlines()
    assert f"'{tmp_path}/to label_data/data.yaml'" in command
    before, after = (settings(Path(each)) for each in ("first look", "to label_data"))
    assert {key: after[key] for key in ("classes", "unlabeled")} == {
        "classes": before["classes"],
        "unlabeled": before["unlabeled"],
    }
    labels = Counter(row["label"] for row in rows_of("to label_data/images.csv"))
    assert labels["1"] == 12 + 2
