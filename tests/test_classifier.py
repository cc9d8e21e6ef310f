import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import world
from PIL import Image
from plain import PlainProjector, normalized, relative_error
from runs import noise
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2.functional import resize
from zoo import odd_photo

from kdpl.classifier import Classifier
from kdpl.data.augmentation import to_tensor
from kdpl.data.decoding import PUBLISHED, Decoding
from kdpl.errors import ArtifactError, ConfigError, DataError
from kdpl.prompts import PromptConfig
from kdpl.prompts.student_encoder import StudentEncoder


def make_classifier(clip, depth=3, vectors=None):
    torch.manual_seed(0)
    encoder = StudentEncoder(clip.image_tower, 2, depth, 24)
    encoder.train()
    # statistics and affine parameters of the batch norm that are not those of a new one
    for _ in range(3):
        encoder.projector(torch.randn(16, 20) + 1)
    vectors = vectors or world.frozen_vectors()
    return Classifier(world.disturbed(encoder, 0.2), vectors, 17.0, clip.identity)


@pytest.fixture(scope="module")
def classifier(clip_of):
    return make_classifier(clip_of("test-student"))


@pytest.fixture
def folder(classifier, tmp_path):
    classifier.save(tmp_path / "classifier")
    return tmp_path / "classifier"


@pytest.mark.parametrize("name", ["test-student", "test-student-quickgelu"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_logits_are_the_plain_ones_before_and_after_a_round_trip(
    name, depth, clip_of, plain_of, images, tmp_path
):
    classifier, plain = make_classifier(clip_of(name), depth), plain_of(name)
    encoder = classifier.encoder
    prompts = None if encoder.prompts is None else encoder.prompts.tokens.detach().double()
    projector = PlainProjector(encoder.projector.state_dict())
    features = normalized(projector(plain.image_features(images, prompts), training=False))
    expected = 17 * features @ classifier.vectors.vectors.double().T
    assert relative_error(classifier(images), expected) < 1e-5
    classifier.save(tmp_path / "c")
    read = Classifier.load(tmp_path / "c")
    assert torch.equal(read(images), classifier(images))
    state, kept = read.state_dict(), classifier.state_dict()
    assert state.keys() == kept.keys()
    assert all(torch.equal(state[k], v) for k, v in kept.items())
    world.assert_untouched(read.encoder.tower.module.visual, name, "visual.")
    assert read.vectors.fields() == classifier.vectors.fields()
    assert (read.logit_scale, read.clip, read.preprocessing) == (
        17.0,
        classifier.clip,
        classifier.preprocessing,
    )
    assert not read.training


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("test-student", {}),
        ("test-student", {"fine_tune": True}),
        ("test-student", {"text_features": "student"}),
        ("test-resnet", {"vision_prompts": PromptConfig(2, 0)}),
        ("test-timm", {"vision_prompts": PromptConfig(2, 0), "fine_tune": True}),
    ],
    ids=["prompts and projector", "fine-tuned", "no projector", "ResNet", "timm"],
)
def test_logits_are_those_of_the_student_that_it_was_made_of(model, settings, tmp_path):
    world.write_teacher(tmp_path)
    student = world.make_student(tmp_path, model, **settings)
    world.fit(student, tmp_path, 2)
    student.eval()
    images = resize(world.TinyDomain().test_images, [student.preprocessing.image_size] * 2)
    expected = student.class_logits(images)
    loaded = Classifier.load(tmp_path / "classifier")
    assert relative_error(loaded(images), expected) < 1e-5
    assert relative_error(student.classifier()(images), expected) < 1e-5
    assert (loaded.clip, loaded.preprocessing) == (student.clip, student.preprocessing)


def test_saving_again_replaces_the_classifier_and_nothing_else(classifier, folder):
    names = ["classifier.json", "model.safetensors"]
    (folder / names[0]).write_text("old")
    classifier.save(str(folder))
    assert Classifier.load(folder).class_names == classifier.class_names
    (folder / "thesis.txt").touch()
    with pytest.raises(
        ArtifactError, match=r"other things than a classifier \(thesis\.txt\) that would be lost"
    ):
        classifier.save(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == [*names, "thesis.txt"]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("one.png", "takes any number of images, not one: put it into a list"),
        (
            [np.zeros((8, 8, 3), np.uint8)],
            "was given a ndarray, expected paths, PIL images or tensors",
        ),
    ],
    ids=["a path", "an array"],
)
def test_what_is_no_list_of_images_is_one_sentence(images, words, classifier):
    with pytest.raises(ConfigError, match=words):
        classifier.predict(images)


@pytest.mark.slow
def test_it_loads_alone_without_lightning_registry_and_network(
    classifier, folder, images, tmp_path
):
    moved = tmp_path / "elsewhere" / "c"
    shutil.copytree(folder, moved)
    torch.save((images, classifier(images)), tmp_path / "expected.pt")
    program = f"""
import sys
def forbid(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise AssertionError(f"{{event}} {{arguments}}")
sys.addaudithook(forbid)
import torch
torch.set_num_threads(1)
from kdpl import Classifier
classifier = Classifier.load({str(moved)!r})
images, expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
assert torch.allclose(classifier(images), expected, rtol=1e-5, atol=1e-5)
assert classifier.predict(list(images))[0][0].class_name in classifier.class_names
heavy = {{"lightning", "pytorch_lightning", "torchmetrics"}}
loaded = sorted(heavy.intersection(sys.modules))
assert not loaded, loaded
"""
    subprocess.run(
        [sys.executable, "-W", "error::UserWarning:kdpl", "-c", program], check=True, cwd=tmp_path
    )


class TestPredict:
    def test_paths_pictures_and_tensors_are_the_same_images(self, classifier, tmp_path):
        pil = [noise(*size) for size in [(32, 32), (50, 40), (20, 33), (64, 32), (32, 31)]]
        paths = [tmp_path / f"{i}.png" for i in range(len(pil))]
        for picture, path in zip(pil, paths, strict=True):
            picture.save(path)
        tensors = [to_tensor(picture) for picture in pil]
        expected = classifier.predict(pil, top_k=5)
        assert classifier.predict(paths, top_k=5) == expected
        assert classifier.predict([str(p) for p in paths], top_k=5) == expected
        assert classifier.predict(tensors, top_k=5) == expected
        assert (
            classifier.predict([paths[0], pil[1], tensors[2], str(paths[3]), pil[4]], top_k=100)
            == expected
        )
        assert classifier.predict(iter(pil)) == [row[:1] for row in expected]
        assert classifier.predict([]) == []
        one_by_one = classifier.predict(pil, top_k=5, batch_size=1)
        assert [[g.class_name for g in row] for row in one_by_one] == [
            [g.class_name for g in row] for row in expected
        ]
        got, wanted = (
            [g.probability for row in rows for g in row] for rows in (one_by_one, expected)
        )
        assert got == pytest.approx(wanted, rel=1e-4)

    def test_embeddings_are_the_encoders_features_of_the_same_images(self, classifier, tmp_path):
        pil = [noise(*size) for size in [(32, 32), (50, 40), (20, 33)]]
        pil[1].save(tmp_path / "1.png")
        with torch.no_grad():
            expected = classifier.encoder(
                torch.stack([classifier.prepare(picture) for picture in pil])
            )
        found = classifier.embed(
            [pil[0], tmp_path / "1.png", to_tensor(pil[2])], batch_size=2, workers=1
        )
        torch.testing.assert_close(found, expected)
        assert not found.is_inference()
        assert classifier.embed([]).shape == (0, 24)
        half = classifier.embed(pil, precision="bf16-mixed")
        assert half.dtype == torch.float32
        assert 0 < (half - expected).abs().max() < 0.05
        (tmp_path / "1.png").write_bytes(b"no image")
        with pytest.raises(DataError, match=r"1\.png"):
            classifier.embed([tmp_path / "1.png"])

    def test_probabilities_are_the_softmax_over_all_classes_highest_first(self, classifier):
        square = noise(32, 32)
        guesses = classifier.predict([square], top_k=5)[0]
        logits = classifier(to_tensor(square)[None])[0].detach().double()
        order = logits.argsort(descending=True).tolist()
        assert [g.class_name for g in guesses] == [world.NAMES[i] for i in order]
        probabilities = (logits.exp() / logits.exp().sum())[order].tolist()
        assert [g.probability for g in guesses] == pytest.approx(probabilities, rel=1e-5)

    def test_grey_and_transparent_pictures_are_read_as_rgb(self, classifier, tmp_path):
        grey = Image.new("L", (32, 32), 77)
        expected = classifier.predict([Image.new("RGB", (32, 32), (77, 77, 77))])
        assert classifier.predict([grey]) == classifier.predict([grey.convert("RGBA")]) == expected
        values = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40)
        Image.fromarray(values * 40).save(tmp_path / "16 bits.png")
        expected = classifier.predict([Image.fromarray((values * 40 >> 8).astype(np.uint8))])
        assert (
            classifier.predict([tmp_path / "16 bits.png"])
            == classifier.predict([Image.open(tmp_path / "16 bits.png")])
            == expected
        )
        with pytest.raises(
            DataError,
            match=r"^an image has values of another kind than 8 or 16 unsigned bits: convert",
        ):
            classifier.predict([Image.new("F", (32, 32))])

    @pytest.mark.parametrize("decoding", [Decoding(), Decoding((0, 90, 200)), PUBLISHED])
    def test_images_are_opened_as_in_training(self, decoding, classifier, tmp_path):
        with Image.open(odd_photo(tmp_path / "a.png")) as image:
            upright, published = (
                image.transpose(Image.Transpose.ROTATE_270),
                to_tensor(image.convert("RGB")),
            )
        on = Image.new("RGBA", upright.size, decoding.background or 0)
        known = Classifier(classifier.encoder, classifier.vectors, 17.0, classifier.clip, decoding)
        known.save(tmp_path / "c")
        read = Classifier.load(tmp_path / "c")
        assert read.decoding == read.add_classes(further(read)).decoding == decoding
        expected = (
            published
            if decoding == PUBLISHED
            else Image.alpha_composite(on, upright).convert("RGB")
        )
        (expected,) = classifier.predict([expected], top_k=5)
        with Image.open(tmp_path / "a.png") as opened:
            for found in read.predict([tmp_path / "a.png", opened], top_k=5):
                assert [each.class_name for each in found] == [each.class_name for each in expected]
                probabilities = [each.probability for each in expected]
                assert [each.probability for each in found] == pytest.approx(
                    probabilities, abs=2e-3
                )

    def test_one_written_without_a_note_of_that_opens_them_as_published(self, folder):
        file = folder / "classifier.json"
        fields = json.loads(file.read_text())
        assert fields.pop("decoding") == {"background": [255, 255, 255], "orientation": True}
        file.write_text(json.dumps(fields))
        assert Classifier.load(folder).decoding == PUBLISHED

    def test_an_unreadable_image_is_named(self, classifier, tmp_path):
        broken = tmp_path / "broken.png"
        noise(32, 32).save(broken)
        broken.write_bytes(broken.read_bytes()[:-60])
        for image, words in (
            (broken, "broken.png"),
            (tmp_path / "missing.png", "missing.png"),
            (Image.open(broken), "an image cannot be decoded"),
        ):
            with world.refused(DataError, words):
                classifier.predict([image])


def further(classifier, **changes):
    """Class vectors of two classes that the classifier does not know, by its own teacher."""
    names = {"class_names": ("eel", "hermit_crab"), "num_base": None}
    return world.frozen_vectors(
        seed=9, **{**names, "teacher": classifier.vectors.teacher, **changes}
    )


class TestAddingClasses:
    def test_old_logits_stay_and_new_ones_are_scaled_cosines(self, classifier, images, tmp_path):
        added = further(classifier, num_base=1)
        more = classifier.add_classes(added)
        assert classifier.class_names == world.NAMES
        logits = more(images)
        assert logits.shape == (3, 7)
        assert torch.equal(logits[:, :5], classifier(images))
        features = classifier.encoder(images).double()
        assert (
            relative_error(logits[:, 5:], 17 * normalized(features) @ added.vectors.double().T)
            < 1e-5
        )
        assert more.class_names == (*world.NAMES, "eel", "hermit_crab")
        assert more.vectors.num_base == classifier.vectors.num_base == 3, (
            "the base classes stay the first ones"
        )
        assert more.encoder is classifier.encoder
        assert not [m for m in more.modules() if m.training]
        more.save(tmp_path / "more")
        read = Classifier.load(tmp_path / "more")
        assert read.vectors.fields() == more.vectors.fields()
        assert torch.equal(read(images), logits)

    def test_a_name_is_known_in_either_spelling_of_unicode(self, classifier):
        composed, decomposed = "jos\u00e9", "jose\u0301"
        more = classifier.add_classes(further(classifier, class_names=("eel", decomposed)))
        assert more.class_names[-1] == composed
        more.vectors.require_names([*world.NAMES, "eel", decomposed], "this")
        with world.refused(ArtifactError, f"has the class '{composed}' already"):
            more.add_classes(further(classifier, class_names=("squid louse", decomposed)))

    @pytest.mark.parametrize(
        ("own", "changes", "match"),
        [
            (
                {},
                {"teacher": "0" * 32},
                "made by another tuned teacher than the class vectors of the classifier: make",
            ),
            (
                {},
                {"class_names": ("eel", "squid")},
                "has the class 'squid' already: add other classes",
            ),
            (
                {"model": "test-student"},
                {},
                "by text features of test-student and not of its teacher test-teacher-qu",
            ),
        ],
    )
    def test_vectors_that_do_not_fit_are_refused(self, own, changes, match, classifier):
        vectors = world.frozen_vectors(**own)
        known = Classifier(classifier.encoder, vectors, 17.0, classifier.clip)
        with world.refused(ArtifactError, match):
            known.add_classes(further(known, **changes))


class TestRefusals:
    def refused(self, folder, match):
        with world.refused(ArtifactError, match) as error:
            Classifier.load(folder)
        assert str(folder) in str(error.value)

    @pytest.mark.parametrize("name", ["classifier.json", "model.safetensors"])
    def test_a_truncated_file(self, name, folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:-20])
        self.refused(folder, r"is damaged \(.+\): give the classifier folder")

    @pytest.mark.parametrize(
        "fields",
        [
            {"prompt_depth": 2},
            {"prompt_length": 3},
            {"prompt_depth": 9},
            {"image_config": {"embed_dim": 20}},
        ],
    )
    def test_settings_that_do_not_fit_the_tensors(self, fields, folder):
        path = folder / "classifier.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        self.refused(folder, "is damaged")

    @pytest.mark.parametrize(
        "name", ["class_vectors", "tower.proj", "encoder.prompts.tokens", "another width"]
    )
    def test_tensors_that_do_not_fit(self, name, folder):
        tensors = load_file(folder / "model.safetensors")
        if tensors.pop(name, None) is None:
            tensors["class_vectors"] = torch.nn.functional.normalize(
                tensors["class_vectors"][:, :16], dim=1
            )
        save_file(tensors, folder / "model.safetensors")
        self.refused(folder, "is damaged")
