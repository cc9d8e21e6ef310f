import json
import shutil
import subprocess
import sys
from functools import partial

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


@pytest.mark.parametrize(
    ("name", "depth"), [("test-student", 0), ("test-student", 3), ("test-student-quickgelu", 1)]
)
def test_logits_are_the_plain_ones_before_and_after_saving(
    name, depth, clip_of, plain_of, images, tmp_path
):
    classifier = make_classifier(clip_of(name), depth)
    encoder = classifier.encoder
    prompts = None if encoder.prompts is None else encoder.prompts.tokens.detach().double()
    projector = PlainProjector(encoder.projector.state_dict())
    plain_features = plain_of(name).image_features(images, prompts)
    features = normalized(projector(plain_features, training=False))
    expected = 17 * features @ classifier.vectors.vectors.double().T
    assert relative_error(classifier(images), expected) < 1e-5
    classifier.save(tmp_path / "c")
    read = Classifier.load(tmp_path / "c")
    assert torch.equal(read(images), classifier(images))
    state, expected_state = read.state_dict(), classifier.state_dict()
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[k], v) for k, v in expected_state.items())
    world.assert_untouched(read.encoder.tower.module.visual, name, "visual.")
    assert read.vectors.fields() == classifier.vectors.fields()
    assert (read.logit_scale, read.clip) == (17.0, classifier.clip)
    assert read.preprocessing == classifier.preprocessing
    assert not read.training


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("test-student", {"fine_tune": True}),
        ("test-resnet", {"vision_prompts": PromptConfig(2, 0)}),
        ("test-timm", {"vision_prompts": PromptConfig(2, 0), "fine_tune": True}),
    ],
    ids=["fine-tuned", "ResNet", "timm"],
)
def test_logits_are_those_of_the_student_that_it_was_made_of(model, settings, tmp_path):
    world.write_teacher(tmp_path)
    student = world.make_student(tmp_path, model, **settings)
    world.fit(student, tmp_path, limit_train_batches=2)
    student.eval()
    images = resize(world.TinyDomain().test_images, [student.preprocessing.image_size] * 2)
    expected = student.class_logits(images)
    loaded = Classifier.load(tmp_path / "classifier")
    assert relative_error(loaded(images), expected) < 1e-5
    assert relative_error(student.classifier()(images), expected) < 1e-5
    assert (loaded.clip, loaded.preprocessing) == (student.clip, student.preprocessing)


def test_saving_again_replaces_the_classifier_and_nothing_else(classifier, folder):
    names = ["README.md", "classifier.json", "model.safetensors"]
    (folder / names[1]).write_text("old")
    classifier.save(str(folder))
    assert Classifier.load(folder).class_names == classifier.class_names
    (folder / "thesis.txt").touch()
    with pytest.raises(ArtifactError, match=r"thesis\.txt"):
        classifier.save(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == [*names, "thesis.txt"]


@pytest.mark.parametrize("images", ["one.png", [np.zeros((8, 8, 3), np.uint8)]])
def test_what_is_no_list_of_images_is_refused(images, classifier):
    with pytest.raises(ConfigError):
        classifier.predict(images)


@pytest.mark.slow
def test_one_prediction_imports_few_files_and_none_of_what_no_option_asks_for(folder):
    code = f"""
import sys, torch
from kdpl import Classifier
Classifier.load({str(folder)!r}).predict([torch.zeros(3, 40, 50, dtype=torch.uint8)])
print(*(name for name in sys.modules if name.partition(".")[0] == "kdpl"))
"""
    # a companion that no option asks for
    (folder / "unknown.safetensors").write_bytes(b"damaged")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = done.stdout.split()
    assert "kdpl.classifier.model" in imported
    assert len(imported) <= 32
    above = {"benchmark", "confidence", "multilabel", "report", "serve"}
    assert above.isdisjoint(part for name in imported for part in name.split(".")[1:2])


def test_it_loads_alone_without_lightning_and_network(classifier, folder, images, tmp_path):
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


def test_paths_pictures_and_tensors_are_the_same_images(classifier, tmp_path):
    pil = [noise(*size) for size in [(32, 32), (50, 40), (20, 33), (64, 32), (32, 31)]]
    paths = [tmp_path / f"{i}.png" for i in range(len(pil))]
    for picture, path in zip(pil, paths, strict=True):
        picture.save(path)
    tensors = [to_tensor(picture) for picture in pil]
    expected = classifier.predict(pil, top_k=5)
    for images in (paths, tensors, [paths[0], pil[1], tensors[2], str(paths[3]), pil[4]]):
        assert classifier.predict(images, top_k=100) == expected
    assert classifier.predict(iter(pil)) == [row[:1] for row in expected]
    assert classifier.predict([]) == []
    require_near(classifier.predict(pil, top_k=5, batch_size=1), expected, rel=1e-4)


def require_near(predictions, expected, **tolerance):
    """The same classes in the same order, with nearly the same probabilities."""
    for row, expected_row in zip(predictions, expected, strict=True):
        names, probabilities = zip(*row, strict=True)
        expected_names, expected_probabilities = zip(*expected_row, strict=True)
        assert names == expected_names
        assert probabilities == pytest.approx(expected_probabilities, **tolerance)


def test_embeddings_are_the_encoders_features_of_the_same_images(classifier, tmp_path):
    pil = [noise(*size) for size in [(32, 32), (50, 40), (20, 33)]]
    pil[1].save(tmp_path / "1.png")
    prepared = torch.stack([classifier.prepare(picture) for picture in pil])
    expected = classifier.encoder(prepared).detach()
    images = [pil[0], tmp_path / "1.png", to_tensor(pil[2])]
    features = classifier.embed(images, batch_size=2, workers=1)
    torch.testing.assert_close(features, expected)
    assert not features.is_inference()
    assert classifier.embed([]).shape == (0, 24)
    half = classifier.embed(pil, precision="bf16-mixed")
    assert half.dtype == torch.float32
    assert 0 < (half - expected).abs().max() < 0.05


def test_probabilities_are_the_softmax_over_all_classes_highest_first(classifier):
    square = noise(32, 32)
    guesses = classifier.predict([square], top_k=5)[0]
    logits = classifier(to_tensor(square)[None])[0].detach().double()
    order = logits.argsort(descending=True).tolist()
    assert [g.class_name for g in guesses] == [world.NAMES[i] for i in order]
    probabilities = (logits.exp() / logits.exp().sum())[order].tolist()
    assert [g.probability for g in guesses] == pytest.approx(probabilities, rel=1e-5)


@pytest.mark.parametrize("decoding", [Decoding(), Decoding((0, 90, 200)), PUBLISHED])
def test_images_are_opened_as_in_training(decoding, classifier, tmp_path):
    with Image.open(odd_photo(tmp_path / "a.png")) as image:
        upright, expected = image.transpose(Image.Transpose.ROTATE_270), image.convert("RGB")
    if decoding == PUBLISHED:
        expected = to_tensor(expected)
    else:
        background = Image.new("RGBA", upright.size, decoding.background)
        expected = Image.alpha_composite(background, upright).convert("RGB")
    opening = Classifier(classifier.encoder, classifier.vectors, 17.0, classifier.clip, decoding)
    opening.save(tmp_path / "c")
    read = Classifier.load(tmp_path / "c")
    assert read.decoding == read.add_classes(further(read)).decoding == decoding
    (row,) = classifier.predict([expected], top_k=5)
    with Image.open(tmp_path / "a.png") as opened:
        predictions = read.predict([tmp_path / "a.png", opened], top_k=5)
        require_near(predictions, [row, row], abs=2e-3)


def test_one_written_without_a_note_of_that_opens_them_as_published(folder):
    change(folder, decoding=None)
    assert Classifier.load(folder).decoding == PUBLISHED


def change(folder, **fields):
    """Change fields of a classifier's settings, or leave out one that is None."""
    file = folder / "classifier.json"
    written = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({k: v for k, v in written.items() if fields.get(k, v) is not None}))


def test_an_unreadable_image_is_named(classifier, tmp_path):
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
    """Class vectors of two classes that the classifier does not have, by its own teacher."""
    fields = {"class_names": ("eel", "hermit_crab"), "num_base": None, **changes}
    return world.frozen_vectors(seed=9, **{"teacher": classifier.vectors.teacher, **fields})


def test_logits_of_added_classes_are_scaled_cosines_beside_the_old(classifier, images, tmp_path):
    added = further(classifier, num_base=1)
    more = classifier.add_classes(added)
    assert classifier.class_names == world.NAMES
    logits = more(images)
    assert logits.shape == (3, 7)
    assert torch.equal(
        world.exact_logits(more, images)[:, :5], world.exact_logits(classifier, images)
    )
    features = normalized(classifier.encoder(images).double())
    assert relative_error(logits[:, 5:], 17 * features @ added.vectors.double().T) < 1e-5
    assert more.class_names == (*world.NAMES, "eel", "hermit_crab")
    assert more.vectors.num_base == 3, "the base classes stay the first ones"
    more.save(tmp_path / "more")
    read = Classifier.load(tmp_path / "more")
    assert read.vectors.fields() == more.vectors.fields()
    assert torch.equal(read(images), logits)


def test_added_classes_keep_scales_and_biases_and_the_old_have_none(classifier, images):
    scales, biases = (2.0, 0.5), (1.0, -1.0)
    plain, scaled = further(classifier), further(classifier, scales=scales, biases=biases)
    logits, expected = (classifier.add_classes(added)(images) for added in (scaled, plain))
    new = expected[:, 5:] * torch.tensor(scales) + torch.tensor(biases)
    assert relative_error(logits, torch.cat([expected[:, :5], new], dim=1)) < 1e-6


def test_a_name_is_known_in_either_spelling_of_unicode(classifier):
    composed, decomposed = "jos\u00e9", "jose\u0301"
    more = classifier.add_classes(further(classifier, class_names=("eel", decomposed)))
    assert more.class_names[-1] == composed
    more.vectors.require_names([*world.NAMES, "eel", decomposed], "this")
    with world.refused(ArtifactError, f"has the class '{composed}' already"):
        more.add_classes(further(classifier, class_names=("squid louse", decomposed)))


def test_vectors_of_another_teacher_are_not_added(classifier):
    with world.refused(ArtifactError, "another tuned teacher"):
        classifier.add_classes(further(classifier, teacher="0" * 32))


def truncate(folder, file):
    (folder / file).write_bytes((folder / file).read_bytes()[:-20])


def change_tensor(folder, name, rows=None):
    """Replace a tensor, or leave it out."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    tensors |= {} if rows is None else {name: rows}
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        partial(truncate, file="classifier.json"),
        partial(truncate, file="model.safetensors"),
        partial(change_tensor, name="class_vectors"),
        partial(change_tensor, name="class_vectors", rows=torch.eye(5, 16)),
        partial(change_tensor, name="encoder.prompts.tokens"),
        partial(change, prompt_depth=2),
        partial(change, image_config={"embed_dim": 20}),
    ],
)
def test_a_folder_whose_files_do_not_fit_each_other_is_refused(damage, folder):
    damage(folder)
    with world.refused(ArtifactError, f"{folder}.* is damaged"):
        Classifier.load(folder)
