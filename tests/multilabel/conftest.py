import pytest
import torch
import world
from pages import OF_PAGES, data_of, write_pages
from PIL import Image
from runs import CONFIGS, SHORT, STAGES

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.multilabel.task import MultiLabel
from kdpl.prompts.student_encoder import StudentEncoder


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    return write_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="session")
def run(tmp_path_factory, table):
    """A whole run, with classes of which the teacher has no label."""
    out = tmp_path_factory.mktemp("multilabel") / "run"
    options = data_of(table, "--data.init_args.protocol=base_to_novel")
    config = f"--config={CONFIGS}/trainer/cpu.yaml"
    assert main(["run", config, *STAGES, *SHORT, *options, f"--out={out}"]) == 0
    return out


@pytest.fixture(scope="session")
def several(tmp_path_factory, table):
    """The folder of a random classifier of the pages; no test changes it."""
    folder, vectors = tmp_path_factory.mktemp("several"), world.frozen_vectors(**OF_PAGES)
    clip = world.clip_of("test-student")
    torch.manual_seed(0)
    encoder = StudentEncoder(clip.image_tower, 2, 3, vectors.vectors.shape[1])
    made = Classifier(world.disturbed(encoder, 0.2), vectors, 17.0, clip.identity)
    # thresholds that some images reach and some do not
    images = torch.stack([made.prepare(Image.open(file)) for file in table.parent.glob("t*.png")])
    with torch.inference_mode():
        made.task = MultiLabel(made(images).sigmoid().median(dim=0).values.tolist())
    made.save(folder)
    return folder
