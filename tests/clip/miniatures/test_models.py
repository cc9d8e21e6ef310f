import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torchvision.transforms.functional import to_tensor

from kdpl.clip.loading import ClipConfig, load_clip
from kdpl.clip.miniatures import models
from kdpl.clip.miniatures.models import CONFIGS, packaged_weights, weights_path
from kdpl.data.readers.digits import CLASS_NAMES, open_digit, read_digits

STATISTICS = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in STATISTICS)
tokenize = open_clip.SimpleTokenizer(context_length=models.CONTEXT_LENGTH)


@pytest.fixture(scope="module", params=CONFIGS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def plain(name):
    """The miniature CLIP as a plain open_clip model."""
    model = open_clip.CLIP(**CONFIGS[name]).eval().requires_grad_(False)
    model.load_state_dict(packaged_weights(name))
    return model


def test_weights_are_finite_with_the_stored_embeddings_at_their_ids(name):
    state_dict = packaged_weights(name)
    assert {value.dtype for value in state_dict.values()} == {torch.float32}
    assert all(value.isfinite().all() for value in state_dict.values())
    stored, table = load_file(weights_path(name)), state_dict["token_embedding.weight"]
    assert torch.equal(table[stored["token_ids"].long()], stored["token_embedding.weight"].float())
    used = tokenize([f"a photo of a {digit}." for digit in CLASS_NAMES]).unique().tolist()
    assert set(used) <= set(stored["token_ids"].tolist())


def test_any_class_name_has_finite_features_different_from_others(plain):
    names = ["cat", "Übergrößenträger", "猫", "forklift truck", "7", "a_b", "!?", "word " * 60]
    features = encode_names(plain, names)
    assert features.isfinite().all()
    assert (features @ features.T - torch.eye(len(names))).max() < 0.9999


def encode_names(plain, names):
    return plain.encode_text(tokenize([f"a photo of a {name}." for name in names]), normalize=True)


def test_zero_shot_accuracy_on_handwriting_leaves_room_to_learn(name, plain):
    lowest, highest = (0.70, 0.85) if name == "tiny-teacher" else (0.60, 0.72)
    records = read_digits().train[::2]
    images = torch.stack([to_tensor(open_digit(record.source)) for record in records])
    labels = torch.tensor([record.label for record in records])
    class_vectors = encode_names(plain, CLASS_NAMES)
    logits = plain.encode_image((images - MEAN) / STD, normalize=True) @ class_vectors.T
    assert lowest <= (logits.argmax(dim=1) == labels).float().mean().item() <= highest


def test_a_registered_model_equals_its_weights_file(name, plain):
    clip = load_clip(ClipConfig(name, "glyphs"))
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert clip.logit_scale == pytest.approx(plain.logit_scale.exp().item())
    assert clip.preprocessing.image_size == 32
    assert clip.tokenize(["a photo of a seven.", "a llama"]).shape == (2, 32)
    expected = plain.encode_image((images - MEAN) / STD)
    assert torch.allclose(clip.image_tower(images), expected, atol=1e-4)
