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
    deep_text = state["text_encoder.transformer.resblocks.1.VPT_shallow"]
    assert torch.equal(learned["text_prompts.deep"], deep_text[None].float())
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
    theirs, ours = "VPT_image_trans.conv1", "encoder.projector.layers"
    kernel = state[f"{theirs}.0.weight"]
    assert kernel.shape == (24, 20, 1, 1)
    assert torch.equal(published.learned[f"{ours}.0.weight"], kernel[:, :, 0, 0])
    assert torch.equal(published.learned[f"{ours}.1.running_var"], state[f"{theirs}.1.running_var"])
    assert published.learned[f"{ours}.1.num_batches_tracked"] == 640
    assert published.learned["encoder.prompts.tokens"].shape == (4, 4, 32)
    assert published.unknown == ()


def test_prompts_of_the_first_layer_alone_are_enough(tmp_path):
    state = {k: v for k, v in files.teacher_state().items() if k in ("prompt_learner.ctx", "image_encoder.VPT")}
    published = read_published(saved(tmp_path, state), "teacher")
    assert published.learned["vision_prompts.tokens"].shape == (1, 4, 48)
    assert published.learned["text_prompts.deep"].shape == (0, 4, 40)
    assert (published.clip, published.logit_scale) == ({}, None)


PROJECTOR = "0.weight 0.bias 1.weight 1.bias 1.running_mean 1.running_var 1.num_batches_tracked 3.weight 3.bias"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("teacher", "image_encoder.VPT"),
        ("teacher", "image_encoder.transformer.resblocks.1.VPT_shallow"),
        ("student", "image_encoder.VPT"),
        ("student", "image_encoder.transformer.resblocks.2.VPT_shallow"),
        *(("student", f"VPT_image_trans.conv1.{name}") for name in PROJECTOR.split()),
    ],
)
def test_a_name_that_is_missing_is_named(kind, name, tmp_path):
    state = files.teacher_state() if kind == "teacher" else files.student_state()
    del state[name]
    with pytest.raises(ArtifactError, match=f"has no {name}: ") as error:
        read_published(saved(tmp_path, state), kind)
    assert world.one_sentence(error)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_encoder.VPT", torch.zeros(1, 4, 32).half(), r"as float16 \[1, 4, 32\], expected floats \[any, any\]"),
        ("image_encoder.VPT", torch.zeros(4, 32).long(), "as int64"),
        ("image_encoder.transformer.resblocks.2.VPT_shallow", torch.zeros(3, 32), r"expected floats \[4, 32\]"),
        ("image_encoder.VPT", torch.full((4, 32), torch.nan), "not finite: its training collapsed"),
        ("image_encoder.VPT", torch.nn.Linear, "no tensor as its image_encoder.VPT"),
        ("VPT_image_trans.conv1.3.weight", torch.zeros(24, 20, 1, 1), r"expected floats \[24, 24, 1, 1\]"),
        ("VPT_image_trans.conv1.1.running_var", torch.zeros(20), r"expected floats \[24\]"),
        ("logit_scale", None, "no tensor as its logit_scale"),
        ("image_encoder.proj", "x", "no tensor as its image_encoder.proj"),
    ],
)
def test_a_tensor_of_another_kind_is_named(name, value, message, tmp_path):
    with pytest.raises(ArtifactError, match=message) as error:
        read_published(saved(tmp_path, {**files.student_state(), name: value}), "student")
    assert world.one_sentence(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}}, "has no state_dict"),
        ([1], "has no state_dict"),
        ({"state_dict": [1]}, "has no state_dict"),
        ({"state_dict": {1: 2}}, "has no state_dict"),
        ({"state_dict": {"proj": torch.zeros(1)}}, "neither prompt_learner.ctx, .* nor VPT_image_trans.conv1"),
    ],
)
def test_a_file_of_something_else_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "f")
    with pytest.raises(ArtifactError, match=message) as error:
        read_published(tmp_path / "f", "teacher")
    assert world.one_sentence(error)
