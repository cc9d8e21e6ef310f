from importlib.metadata import entry_points

import open_clip
import pytest
import torch
import world
from safetensors.torch import load_file, save_file
from torchvision.transforms.functional import to_tensor

from kdpl.clip.loading import ClipConfig, load_clip
from kdpl.data.readers.digits import open_digit, read_digits
from kdpl.errors import WeightsError
from kdpl.tiny import models, register
from kdpl.tiny.glyphs import DIGIT_NAMES
from kdpl.tiny.models import CONFIGS, load_weights, weights_path

MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
tokenize = open_clip.SimpleTokenizer(context_length=models.CONTEXT_LENGTH)
each_model = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture
def saved(tmp_path):
    """A file of random weights for a vocabulary of five tokens, and its content."""
    state_dict = open_clip.CLIP(**models.compact_config("tiny-student", 5)).state_dict()
    token_ids = torch.tensor([3, 17, 400, 49_406, 49_407])
    path = tmp_path / "folder" / "student.safetensors"
    models.save_compact(path, state_dict, token_ids, name="tiny-student", steps=7, seed=9)
    return path, state_dict, token_ids


def test_all_weights_together_have_at_most_4_5_megabytes():
    assert sum(weights_path(name).stat().st_size for name in CONFIGS) <= 4_500_000


@each_model
def test_weights_are_complete_and_finite_with_the_stored_embeddings_at_their_ids(name, tiny_clips):
    state_dict = load_weights(name)
    assert state_dict.keys() == tiny_clips[name].state_dict().keys()
    assert {value.dtype for value in state_dict.values()} == {torch.float32}
    assert all(value.isfinite().all() for value in state_dict.values())
    stored, table = load_file(weights_path(name)), state_dict["token_embedding.weight"]
    assert torch.equal(table[stored["token_ids"].long()], stored["token_embedding.weight"].float())
    known = tokenize([f"a photo of a {digit}." for digit in DIGIT_NAMES]).unique().tolist()
    assert set(known) <= set(stored["token_ids"].tolist())


def test_unseen_embeddings_differ_and_have_the_mean_and_spread_of_the_trained_ones():
    rows = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)) + 3
    token_ids = torch.arange(100, 130)
    table = models.expand_embedding(rows, token_ids, vocab_size=20_000)
    unseen = torch.cat([table[:100], table[130:]])
    assert torch.allclose(unseen.mean(dim=0), rows.mean(dim=0), atol=0.05)
    assert torch.allclose(unseen.std(dim=0), rows.std(dim=0, correction=0), atol=0.05)
    assert len(unseen.unique(dim=0)) == len(unseen)
    assert torch.equal(table, models.expand_embedding(rows, token_ids, vocab_size=20_000))


@each_model
def test_any_class_name_has_finite_features_different_from_others(name, tiny_clips):
    names = ["cat", "dog", "Übergrößenträger", "猫", "forklift truck", "7", "a_b", "!?", "word " * 60]
    features = tiny_clips[name].encode_text(tokenize([f"a photo of a {each}." for each in names]), normalize=True)
    assert features.isfinite().all()
    assert (features @ features.T - torch.eye(len(names))).max() < 0.9999


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [("tiny-teacher", 0.70, 0.85), ("tiny-student", 0.60, 0.72), ("tiny-resnet", 0.60, 0.72)],
)
def test_zero_shot_accuracy_on_handwriting_leaves_room_to_learn(name, lowest, highest, tiny_clips):
    records = read_digits().train
    images = torch.stack([to_tensor(open_digit(record.source)) for record in records])
    labels = torch.tensor([record.label for record in records])
    texts = tokenize([f"a photo of a {digit}." for digit in DIGIT_NAMES])
    class_vectors = tiny_clips[name].encode_text(texts, normalize=True)
    logits = tiny_clips[name].encode_image((images - MEAN) / STD, normalize=True) @ class_vectors.T
    assert lowest <= (logits.argmax(dim=1) == labels).float().mean().item() <= highest


def test_saved_weights_load_in_half_precision(saved):
    path, state_dict, token_ids = saved
    loaded = load_weights("tiny-student", path)
    assert torch.equal(loaded["token_embedding.weight"][token_ids], state_dict["token_embedding.weight"].half().float())
    assert torch.equal(loaded["logit_scale"], state_dict["logit_scale"])
    assert torch.equal(loaded["visual.proj"], state_dict["visual.proj"].half().float())
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda path: path.unlink(), r"student\.safetensors.*pretrain"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), r"student\.safetensors"),
        (lambda path: save_file({"weight": torch.zeros(2)}, path), r"student\.safetensors"),
        (lambda _: None, r"'tiny-student'.*'tiny-teacher'"),
    ],
    ids=["missing", "truncated", "foreign", "another model"],
)
def test_unusable_weights_are_rejected(damage, match, saved):
    damage(saved[0])
    with world.refused(WeightsError, match):
        load_weights("tiny-teacher", saved[0])


@each_model
def test_a_registered_model_equals_its_weights_file(name, tiny_clips):
    assert any(entry.load() is register for entry in entry_points(group="kdpl.models"))
    clip, plain = load_clip(ClipConfig(name, "glyphs")), tiny_clips[name]
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert clip.logit_scale == pytest.approx(plain.logit_scale.exp().item())
    assert clip.preprocessing.image_size == 32
    assert clip.tokenize(["a photo of a seven.", "a llama"]).shape == (2, 32)
    assert torch.allclose(clip.image_tower(images), plain.encode_image((images - MEAN) / STD), atol=1e-4)
