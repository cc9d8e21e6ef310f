import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from kdpl.errors import WeightsError
from kdpl.tiny.glyphs import DIGIT_NAMES
from kdpl.tiny.models import (
    CONFIGS,
    CONTEXT_LENGTH,
    TAG,
    VOCAB_SIZE,
    compact_config,
    expand_embedding,
    load_weights,
    read_metadata,
    save_compact,
    weights_path,
)

NAMES = tuple(CONFIGS)
tokenize = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)


def train_digits():
    """The half of the handwritten digits that no test split shares, as 32-pixel images."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=24, mode="bicubic", align_corners=False).clamp(0, 1)
    images = F.pad(images, [4] * 4).repeat(1, 3, 1, 1)
    mean, std = (
        torch.tensor(x).view(1, 3, 1, 1) for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    train = np.random.RandomState(0).permutation(len(images))[:898]
    return (images[train] - mean) / std, torch.tensor(digits.target)[train]


@pytest.fixture
def saved(tmp_path):
    """A file of random weights for a vocabulary of five tokens, and what went into it."""
    state_dict = open_clip.CLIP(**compact_config("tiny-student", 5)).state_dict()
    token_ids = torch.tensor([3, 17, 400, 49_406, 49_407])
    path = tmp_path / "folder" / "student.safetensors"
    save_compact(path, state_dict, token_ids, name="tiny-student", steps=7, seed=9)
    return path, state_dict, token_ids


def test_all_files_of_weights_together_are_at_most_4_5_megabytes():
    assert sum(weights_path(name).stat().st_size for name in NAMES) <= 4_500_000


@pytest.mark.parametrize("name", NAMES)
def test_the_file_says_which_model_it_is_and_how_it_was_trained(name):
    metadata = read_metadata(weights_path(name))
    assert (metadata["model"], metadata["tag"], metadata["quick_gelu"]) == (name, TAG, False)
    assert metadata["steps"] >= 1000
    assert isinstance(metadata["seed"], int)


@pytest.mark.parametrize("name", NAMES)
def test_the_loaded_state_dict_is_complete_finite_and_float32(name, tiny_clips):
    state_dict = load_weights(name)
    assert state_dict.keys() == tiny_clips[name].state_dict().keys()
    for key, value in state_dict.items():
        assert value.dtype == torch.float32, key
        assert value.isfinite().all(), key


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_embeddings_holds_the_stored_rows_at_their_ids(name):
    stored = load_file(weights_path(name))
    table = load_weights(name)["token_embedding.weight"]
    assert table.shape == (VOCAB_SIZE, CONFIGS[name]["text_cfg"]["width"])
    for token_id, row in zip(stored["token_ids"].tolist(), stored["token_embedding.weight"], strict=True):
        assert torch.equal(table[token_id], row.float())
    known = tokenize([f"a photo of a {digit}." for digit in DIGIT_NAMES]).unique().tolist()
    assert set(known) <= set(stored["token_ids"].tolist())


def test_unseen_rows_lie_around_the_trained_ones_and_differ_from_each_other():
    rows = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)) + 3
    token_ids = torch.arange(100, 130)
    table = expand_embedding(rows, token_ids, vocab_size=20_000)
    unseen = torch.cat([table[:100], table[130:]])
    assert torch.allclose(unseen.mean(dim=0), rows.mean(dim=0), atol=0.05)
    assert torch.allclose(unseen.std(dim=0), rows.std(dim=0, correction=0), atol=0.05)
    assert len(unseen.unique(dim=0)) == len(unseen)
    assert torch.equal(table, expand_embedding(rows, token_ids, vocab_size=20_000))


@pytest.mark.parametrize("name", NAMES)
def test_any_typed_name_has_finite_features_of_its_own(name, tiny_clips):
    names = ["cat", "dog", "Übergrößenträger", "猫", "forklift truck", "7", "a_b", "!?", "word " * 60]
    features = tiny_clips[name].encode_text(tokenize([f"a photo of a {one}." for one in names]), normalize=True)
    assert features.isfinite().all()
    similarity = features @ features.T - torch.eye(len(names))
    assert similarity.max() < 0.9999


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [("tiny-teacher", 0.70, 0.85), ("tiny-student", 0.60, 0.72), ("tiny-resnet", 0.60, 0.72)],
)
def test_zero_shot_accuracy_on_handwriting_leaves_something_to_learn(name, lowest, highest, tiny_clips):
    images, labels = train_digits()
    class_vectors = tiny_clips[name].encode_text(
        tokenize([f"a photo of a {digit}." for digit in DIGIT_NAMES]), normalize=True
    )
    features = tiny_clips[name].encode_image(images, normalize=True)
    accuracy = ((features @ class_vectors.T).argmax(dim=1) == labels).float().mean().item()
    assert lowest <= accuracy <= highest


def test_what_is_saved_is_loaded_to_half_precision(saved):
    path, state_dict, token_ids = saved
    loaded = load_weights("tiny-student", path)
    assert torch.equal(loaded["token_embedding.weight"][token_ids], state_dict["token_embedding.weight"].half().float())
    assert torch.equal(loaded["logit_scale"], state_dict["logit_scale"])
    assert torch.equal(loaded["visual.proj"], state_dict["visual.proj"].half().float())
    assert read_metadata(path)["steps"] == 7
    assert read_metadata(path)["seed"] == 9


def test_saving_leaves_nothing_beside_the_file(saved):
    path, _, _ = saved
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"gone\.safetensors.*pretrain"):
        load_weights("tiny-student", tmp_path / "gone.safetensors")


def test_a_cut_off_file_is_named(saved):
    path, _, _ = saved
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"student\.safetensors"):
        load_weights("tiny-student", path)


def test_weights_of_the_other_model_are_refused(saved):
    path, _, _ = saved
    with pytest.raises(WeightsError, match=r"'tiny-student'.*'tiny-teacher'"):
        load_weights("tiny-teacher", path)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match=r"other\.safetensors"):
        load_weights("tiny-student", path)
