"""``predict --explain``: a picture for each image."""

import shutil

import pytest
from PIL import Image
from runs import noise, refused, rows_of

import kdpl.report.reasons.pictures
from kdpl.__main__ import main
from kdpl.classifier import Classifier
from kdpl.report.reasons.pictures import nearest_labelled
from kdpl.report.run_folder import Run

PANEL = 176 + 8


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, edge in enumerate((40, 60)):
        noise(edge, 50, seed=number).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    return tmp_path / "photos"


def explain(classifier, photos, out, *options):
    return main(["predict", str(classifier), str(photos), f"--explain={out}", *options])


def panels(path):
    with Image.open(path) as picture:
        return picture.width // PANEL


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_each_image_gets_a_picture_with_the_nearest_labelled_images(
    classifier, photos, tmp_path, capsys
):
    assert main(["predict", str(classifier), str(photos)]) == 0
    expected = capsys.readouterr().out
    assert explain(classifier, photos, tmp_path / "why") == 0
    assert capsys.readouterr().out == expected
    assert names_in(tmp_path / "why") == ["000001_0.png", "000002_1.png"]
    # what was seen, one heat map, four labelled images
    assert [panels(path) for path in (tmp_path / "why").iterdir()] == [6, 6]
    # the heat maps are of the classes predicted or of the one given
    for options, number in ((["--top-k=3"], 8), (["--explain-class=six", "--top-k=3"], 6)):
        assert explain(classifier, photos, tmp_path / str(number), *options) == 0
        assert panels(tmp_path / str(number) / "000001_0.png") == number


def test_rejected_images_and_a_classifier_without_its_run_have_pictures_too(
    classifier, photos, tmp_path, capsys
):
    alone = shutil.copytree(classifier, tmp_path / "classifier")
    code = explain(alone, photos, tmp_path / "why", "--max-error=50%")
    said = capsys.readouterr()
    assert code == 0, said.err
    assert ",," in said.out
    assert panels(tmp_path / "why" / "000001_0.png") == 2
    assert "the nearest labelled images are left out: " in said.err


def test_pictures_of_a_resumed_table_keep_their_numbers(classifier, photos, tmp_path, monkeypatch):
    table, why = tmp_path / "table.csv", tmp_path / "why"
    options = [f"--out={table}", "--batch-size=1"]
    whole, drawn = kdpl.report.reasons.pictures.picture, []

    def once(*args):
        drawn.append(args)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr("kdpl.report.reasons.pictures.picture", once)
    assert explain(classifier, photos, why, *options) != 0
    assert names_in(why) == ["000001_0.png"]
    assert explain(classifier, photos, why, *options) == 0
    assert names_in(why) == ["000001_0.png", "000002_1.png"]
    # the first image is not drawn once more
    assert len(drawn) == 3
    assert len(rows_of(table)) == 3


def test_bad_input_is_one_sentence(classifier, photos, tmp_path, capsys):
    (tmp_path / "file").touch()
    to_folder = f"--explain={tmp_path / 'why'}"
    for options, words in (
        ([f"--explain={tmp_path}/file/inside"], "cannot be made"),
        (["--explain-class=two"], "needs a folder for pictures"),
        ([to_folder, "--explain-class=tow"], "no class 'tow'"),
        ([to_folder, "--precision=bf16-mixed"], "leave out --precision"),
    ):
        refused(capsys, main(["predict", str(classifier), str(photos), *options]), words)


def test_the_nearest_are_the_labelled_images_of_the_largest_cosine_similarity(
    student_run, classifier
):
    loaded, data = Classifier.load(classifier), Run.find(student_run).data
    nearest = nearest_labelled(loaded, data)
    records = data.labels.training()
    images = [data.splits.open_image(record.source) for record in records]
    features = loaded.embed(images)
    query = loaded.embed([data.test_item(5)[1]])[0]
    order = sorted(range(len(images)), key=lambda i: -float(features[i] @ query))[:4]
    shown, captions = zip(*nearest(query), strict=True)
    assert [image.tobytes() for image in shown] == [images[i].tobytes() for i in order]
    names = [data.class_names[records[i].label] for i in order]
    assert list(captions) == [
        f"labelled {name}\nsimilarity {float(features[i] @ query):.2f}"
        for i, name in zip(order, names, strict=True)
    ]
    # a labelled image is nearest to itself
    assert nearest(features[7])[0][0].tobytes() == images[7].tobytes()
    without_labels = Run.find(student_run)
    without_labels.main.config["data"]["init_args"]["shots"] = 0
    assert nearest_labelled(loaded, without_labels.data)(query) == []
