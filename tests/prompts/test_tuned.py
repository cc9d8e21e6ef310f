import pytest
import torch
import world
from safetensors.torch import load_file

from kdpl.artifacts import write_tensors
from kdpl.errors import ArtifactError
from kdpl.prompts.tuned import KIND, VERSION, TunedPrompts

CLIP = "0123456789abcdef" * 2


def tensors(seed=0, width=48, depth=2):
    draw = torch.Generator().manual_seed(seed)
    return {
        "vision_prompts.tokens": torch.randn(depth, 3, width, generator=draw),
        "text_prompts.context": torch.randn(4, 40, generator=draw),
        "text_prompts.deep": torch.randn(0, 4, 40),
    }


def test_prompts_come_back_as_they_were_saved(tmp_path):
    saved = TunedPrompts.of(tensors(), CLIP)
    saved.save(tmp_path / "run" / "prompts.safetensors")
    read = TunedPrompts.load(tmp_path / "run" / "prompts.safetensors")
    assert read.teacher == saved.teacher
    assert read.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(read.tensors[k], v) for k, v in saved.tensors.items())


def test_a_teacher_without_prompts_can_be_saved(tmp_path):
    saved = TunedPrompts.of({}, CLIP)
    saved.save(tmp_path / "prompts.safetensors")
    assert TunedPrompts.load(tmp_path / "prompts.safetensors") == saved


def test_the_fingerprint_tells_prompts_and_clips_apart():
    changed = tensors()
    changed["vision_prompts.tokens"][1, 2, 47] += 1e-4
    teachers = [TunedPrompts.of(t, c).teacher for t, c in [(tensors(), CLIP), (changed, CLIP), (tensors(), CLIP[::-1])]]
    assert len(set(teachers)) == 3
    assert TunedPrompts.of(tensors(), CLIP).teacher == teachers[0]


def test_the_towers_prompts_are_frozen_and_those_that_were_saved(clip_of, images, plain_of):
    tower = clip_of("test-teacher").image_tower
    prompts = TunedPrompts.of(tensors(), CLIP).vision_prompts(tower)
    assert not prompts.tokens.requires_grad
    expected = plain_of("test-teacher").image_features(images, tensors()["vision_prompts.tokens"].double())
    assert torch.allclose(prompts(tower, images), expected.float(), rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_teacher_without_visual_prompts_has_none(clip_of):
    assert TunedPrompts.of({}, CLIP).vision_prompts(clip_of("test-teacher").image_tower) is None


@pytest.mark.parametrize(("width", "depth"), [(32, 2), (48, 4)])
def test_prompts_of_another_tower_are_refused(width, depth, clip_of):
    prompts = TunedPrompts.of(tensors(width=width, depth=depth), CLIP)
    with pytest.raises(
        ArtifactError, match=rf"width {width} and at least {depth} layers.*width 48 and 3 layers"
    ) as error:
        prompts.vision_prompts(clip_of("test-teacher").image_tower)
    assert world.one_sentence(error)


def test_a_file_whose_prompts_were_changed_is_refused(tmp_path):
    path = tmp_path / "prompts.safetensors"
    saved = TunedPrompts.of(tensors(), CLIP)
    saved.save(path)
    write_tensors(
        path, KIND, VERSION, {**load_file(path), "text_prompts.context": torch.ones(4, 40)}, {"teacher": saved.teacher}
    )
    with pytest.raises(
        ArtifactError, match=r"prompts\.safetensors holds other prompts than its fingerprint says"
    ) as error:
        TunedPrompts.load(path)
    assert world.one_sentence(error)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"prompts\.safetensors does not exist.*run stage 1") as error:
        TunedPrompts.load(tmp_path / "prompts.safetensors")
    assert world.one_sentence(error)
