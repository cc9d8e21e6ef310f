import published_files as files
import pytest
import torch
import world

from kdpl.benchmark.checkpoints.names import read_published
from kdpl.errors import ArtifactError


def saved(tmp_path, state):
    torch.save({"state_dict": state, "epoch": 20}, tmp_path / "f.pth")
    return tmp_path / "f.pth"


def test_a_teachers_names_become_those_of_the_module(tmp_path):
    state = files.teacher_state()
    published = read_published(saved(tmp_path, state), "teacher")
    learned, deep = published.learned, "image_encoder.transformer.resblocks.{}.VPT_shallow"
    assert learned.keys() == {"text_prompts.context", "text_prompts.deep", "vision_prompts.tokens"}
    assert torch.equal(learned["text_prompts.context"], state["prompt_learner.ctx"].float())
    text_layer = state["text_encoder.transformer.resblocks.1.VPT_shallow"].float()
    assert torch.equal(learned["text_prompts.deep"], text_layer[None])
    layers = [state["image_encoder.VPT"], state[deep.format(1)], state[deep.format(2)]]
    assert torch.equal(learned["vision_prompts.tokens"], torch.stack(layers).float())
    assert {tensor.dtype for tensor in learned.values()} == {torch.float32}
    assert (published.epoch, published.unknown) == (20, ())
    assert published.logit_scale == state["logit_scale"]
    # token_prefix and the like are no weights of CLIP
    assert {tower for tower, _, _ in published.clip.values()} == {"image", "text"}
    assert published.clip["prompt_learner.ZS_image_encoder.proj"][:2] == ("image", "proj")
    assert published.clip["text_encoder.ln_final.bias"][:2] == ("text", "ln_final.bias")


def test_a_students_kernels_become_matrices(tmp_path):
    state = files.student_state(torch.float32)
    published = read_published(saved(tmp_path, state), "student")
    kernel = state["VPT_image_trans.conv1.0.weight"]
    assert kernel.shape == (24, 20, 1, 1)
    assert torch.equal(published.learned["encoder.projector.layers.0.weight"], kernel[:, :, 0, 0])
    assert torch.equal(
        published.learned["encoder.projector.layers.1.running_var"], state["VPT_image_trans.conv1.1.running_var"]
    )
    assert published.learned["encoder.projector.layers.1.num_batches_tracked"] == 640
    assert published.learned["encoder.prompts.tokens"].shape == (4, 4, 32)
    assert published.unknown == ()


def test_prompts_at_the_first_layer_alone(tmp_path):
    state = {k: v for k, v in files.teacher_state().items() if "VPT_shallow" not in k}
    learned = read_published(saved(tmp_path, state), "teacher").learned
    assert learned["vision_prompts.tokens"].shape == (1, 4, 48)
    assert learned["text_prompts.deep"].shape == (0, 4, 40)


def test_a_file_of_prompts_alone_is_enough(tmp_path):
    state = {k: v for k, v in files.teacher_state().items() if "VPT" in k or k == "prompt_learner.ctx"}
    published = read_published(saved(tmp_path, state), "teacher")
    assert published.clip == {}
    assert published.logit_scale is None


NEEDED = {
    "teacher": [
        "image_encoder.VPT",
        "image_encoder.transformer.resblocks.1.VPT_shallow",
    ],
    "student": [
        "image_encoder.VPT",
        "image_encoder.transformer.resblocks.2.VPT_shallow",
        *(
            f"VPT_image_trans.conv1.{name}"
            for name in ("0.weight", "0.bias", "3.weight", "3.bias", "1.weight", "1.bias")
        ),
        *(f"VPT_image_trans.conv1.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")),
    ],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NEEDED.items() for name in names])
def test_a_name_that_is_missing_is_named(kind, name, tmp_path):
    state = files.teacher_state() if kind == "teacher" else files.student_state()
    del state[name]
    with pytest.raises(ArtifactError, match=f"has no {name}: ") as error:
        read_published(saved(tmp_path, state), kind)
    assert world.one_sentence(error)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "image_encoder.VPT",
            torch.zeros(1, 4, 32).half(),
            r"VPT as float16 \[1, 4, 32\], expected floats \[any, any\]",
        ),
        ("image_encoder.VPT", torch.zeros(4, 32).long(), "as int64"),
        ("image_encoder.transformer.resblocks.2.VPT_shallow", torch.zeros(3, 32), r"expected floats \[4, 32\]"),
        ("image_encoder.VPT", torch.full((4, 32), torch.nan), "not finite: its training collapsed"),
        ("image_encoder.VPT", torch.nn.Linear, "no tensor as its image_encoder.VPT"),
        ("VPT_image_trans.conv1.3.weight", torch.zeros(24, 20, 1, 1), r"expected floats \[24, 24, 1, 1\]"),
        ("VPT_image_trans.conv1.0.weight", torch.zeros(24, 20), r"expected floats \[any, any, 1, 1\]"),
        ("VPT_image_trans.conv1.1.running_var", torch.zeros(20), r"expected floats \[24\]"),
        ("logit_scale", None, "no tensor as its logit_scale"),
        ("image_encoder.proj", "x", "no tensor as its image_encoder.proj"),
    ],
)
def test_a_tensor_of_another_kind_is_named(name, value, message, tmp_path):
    with pytest.raises(ArtifactError, match=message) as error:
        read_published(saved(tmp_path, {**files.student_state(), name: value}), "student")
    assert world.one_sentence(error)


@pytest.mark.parametrize("content", [{"model": {}}, [1], {"state_dict": [1]}, {"state_dict": {1: 2}}])
def test_a_file_without_a_state_dict(content, tmp_path):
    torch.save(content, tmp_path / "f")
    with pytest.raises(ArtifactError, match="has no state_dict") as error:
        read_published(tmp_path / "f", "teacher")
    assert world.one_sentence(error)


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_a_state_dict_of_something_else(kind, tmp_path):
    with pytest.raises(ArtifactError, match=r"neither prompt_learner.ctx, .* nor VPT_image_trans.conv1") as error:
        read_published(saved(tmp_path, world.weights("test-student")), kind)
    assert world.one_sentence(error)
