import subprocess
import sys
from importlib.metadata import entry_points

import open_clip
import pytest
import torch

from kdpl.clip.loading import ClipConfig, load_clip
from kdpl.tiny import register
from kdpl.tiny.models import CONFIGS


def test_registering_reads_no_weights_and_imports_neither_matplotlib_nor_sklearn():
    program = """
import sys, kdpl.clip.loading
imported_before = set(sys.modules)
import safetensors
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
from kdpl.tiny import register
register()
new = {name.split(".")[0] for name in set(sys.modules) - imported_before}
assert not new & {"matplotlib", "sklearn", "PIL"}, new
assert not {name for name in sys.modules if name.startswith("kdpl.tiny.")} - {"kdpl.tiny.models"}
assert not [name for name in opened if "weights/" in name], opened
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_entry_point_leads_to_register():
    assert any(entry.load() is register for entry in entry_points(group="kdpl.models"))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_registry_gives_the_same_model_as_the_weights_file(name, tiny_clips):
    clip = load_clip(ClipConfig(name, "glyphs"))
    plain = tiny_clips[name]
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    assert clip.logit_scale == pytest.approx(plain.logit_scale.exp().item())
    assert clip.preprocessing.image_size == 32
    tokens = clip.tokenize(["a photo of a seven.", "a llama"])
    assert tokens.shape == (2, 32)
    assert torch.allclose(clip.image_tower(images), plain.encode_image((images - mean) / std), atol=1e-4)
