"""Every file in configs/ is parsed, and what it configures is built.

Miniature CLIPs stand in for those whose weights are a download.
"""

from pathlib import Path

import open_clip
import pytest
import timm
import world
import yaml
from benchmark_tree import TRAINABLE, VARIANTS, make_tree
from runs import CONFIGS, DATA, TEACHER, configs, image_folder
from world import TAG

from kdpl import StudentDistillation, TeacherPromptTuning
from kdpl.benchmark.ablations import FeatureDistillation, OwnTextFeatures
from kdpl.cli.fit import parse_stage
from kdpl.data.domain import build_data
from kdpl.data.readers.benchmark import BENCHMARKS
from kdpl.runtime.configs import read_config

NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*") if path.is_file())
PUBLISHED_TEACHER = "teacher/promptsrc_vit_l14.yaml"
PUBLISHED_STUDENT = "student/promptkd_vit_b16.yaml"
# by the runs that all tests share
QUICKSTART = {
    "data/digits.yaml",
    "trainer/cpu.yaml",
    "teacher/quickstart.yaml",
    "student/quickstart.yaml",
}
OVERLAYS = ("trainer/gpu.yaml", "trainer/ddp.yaml", "logger/csv.yaml")
BENCHMARK = {f"data/{name}.yaml": name for name in TRAINABLE}
TEST_ONLY = {f"data/{name}.yaml": name for name in ("imagenetv2", *VARIANTS)}
# in tests of their own, below and in tests/callbacks, tests/cli and tests/runtime
APART = {"data/folder.yaml", "data/table.yaml", "data/base_to_novel.yaml"}
# of several labels an image, in tests/multilabel
APART |= {"student/local_views.yaml"}
APART |= {name for name in NAMES if name.startswith("debug/")}
APART |= {f"logger/{name}.yaml" for name in ("mlflow", "tensorboard", "wandb")}

STAGES = {name for name in NAMES if name.startswith(("teacher/", "student/"))} - QUICKSTART - APART


def test_every_config_is_read_by_a_test():
    # all in tests/benchmark
    of_many_runs = {name for name in NAMES if name.startswith(("benchmark/", "sweep/"))}
    tested = {*QUICKSTART, *OVERLAYS, *STAGES, *BENCHMARK, *TEST_ONLY, *APART}
    assert {*NAMES} - of_many_runs == tested


def models_of(settings):
    """The models that a config names, each with its weights, at any depth."""
    if isinstance(settings, dict):
        if isinstance(settings.get("model"), str):
            yield settings["model"], settings.get("pretrained")
        for value in settings.values():
            yield from models_of(value)


def test_the_models_of_all_stages_exist():
    models = {model for name in STAGES for model in models_of(read_config(str(CONFIGS / name)))}
    assert len(models) > 10
    for model, weights in models:
        library, _, name = model.rpartition(":")
        if library == "timm":
            assert timm.is_model(name), model
        elif not library and not name.startswith("tiny-") and not str(weights).endswith(".pt"):
            assert weights in open_clip.list_pretrained_tags_by_model(model), model


# a small network of timm, or a random CLIP with as many layers as the published settings prompt
STAND_INS = {
    "student/rn50.yaml": "test-resnet",
    "student/mobileclip_s1.yaml": "test-timm",
    "student/mobileclip2.yaml": "test-timm",
    "student/mobilenetv4.yaml": "timm:test_resnet",
    "student/quickstart_timm.yaml": "timm:test_resnet",
    "student/quickstart_timm_64.yaml": "timm:test_resnet",
}


@pytest.fixture(scope="module")
def published(teacher_folder, tmp_path_factory):
    """A fit of the published settings by the name of its stage; parsing takes longer than a change of what is parsed."""
    out = f"--out={tmp_path_factory.mktemp('published')}"
    teacher = f"--model.init_args.teacher={teacher_folder}"
    return {
        "teacher": parse_stage("fit", [*DATA, *configs(PUBLISHED_TEACHER), out]),
        "student": parse_stage("fit", [*DATA, *configs(PUBLISHED_STUDENT), teacher, out]),
    }


def small(name, published):
    """A fit with a config over the published one of its stage, and with a stand-in."""
    config, clip = read_config(str(CONFIGS / name)), STAND_INS.get(name, "test-deep")
    settings = config.setdefault("model", {}).setdefault("init_args", {})
    settings["clip"] = settings.get("clip", {}) | {"model": clip, "pretrained": TAG}
    if name == "teacher/mmrl.yaml":
        # the layers of the random CLIP are nine
        settings["method"]["init_args"]["first_layer"] = 3
    if clip.startswith("timm:"):
        settings["clip"] |= {"pretrained": "random", "image_size": 32}
    return published[name.partition("/")[0]].derive(config)


ABLATIONS = {
    "student/feature_l1.yaml": FeatureDistillation,
    "student/feature_mse.yaml": FeatureDistillation,
    "student/own_text_features.yaml": OwnTextFeatures,
}


@pytest.mark.parametrize("name", sorted(STAGES))
def test_a_stage_is_built_by_its_config(name, published):
    stage = small(name, published)
    stage.check_all()
    stage.build(stage.config.clone())
    kind = TeacherPromptTuning if name.startswith("teacher/") else StudentDistillation
    assert type(stage.model) is ABLATIONS.get(name, kind)


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_config_over_those_of_the_quickstart_is_built(name, tmp_path):
    over = [*configs(name), "--trainer.accelerator=cpu", f"--out={tmp_path}"]
    devices = 2 if "ddp" in name else 1
    stage = parse_stage("fit", [*DATA, *TEACHER, *over, f"--trainer.devices={devices}"])
    stage.build(stage.config.clone())
    assert stage.trainer.num_devices == devices
    assert stage.trainer.precision == ("bf16-mixed" if "gpu" in name else "32-true")


def built(root, *names):
    """The datamodule of configs, of which later ones win, with the data in a folder."""
    sections = [read_config(str(CONFIGS / name))["data"] for name in names]
    options = {"root": root, "shots": 1, "num_workers": 0}
    return build_data(sections, [f"--data.init_args.{k}={v}" for k, v in options.items()])


def test_base_and_novel_classes_are_halves():
    names = ("data/digits.yaml", "data/base_to_novel.yaml")
    data = build_data([read_config(str(CONFIGS / name))["data"] for name in names])
    assert (len(data.class_names), data.num_base) == (10, 5)


@pytest.mark.parametrize(
    ("config", "root"), [("data/folder.yaml", "data"), ("data/table.yaml", "labels.csv")]
)
def test_the_configs_of_custom_images_read_each_split(config, root, tmp_path):
    image_folder(tmp_path / "data", splits=("train", "val", "test"))
    images = sorted((tmp_path / "data").rglob("*.png"))
    rows = [f"{image},{image.parent.name},{image.parent.parent.name}" for image in images]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label,split", *rows]))
    data = built(tmp_path / root, config)
    assert data.class_names == ("cat", "dog")
    for split in ("train", "val", "test"):
        folders = {Path(record.source).parents[1].name for record in getattr(data.splits, split)}
        assert folders == {split}


@pytest.mark.parametrize("name", BENCHMARK)
def test_a_benchmark_datasets_config_trains_and_validates(name, tmp_path):
    make_tree(BENCHMARK[name], tmp_path)
    data, module = built(tmp_path, name), world.Probe()
    world.fit(module, tmp_path / "out", domain=data, limit_val_batches=None)
    assert len(data.class_names) == 3
    assert sum(len(batch.labels) for batch in module.train_batches) == 3
    # as published, ImageNet has no validation split
    assert bool(module.val_batches) == (name != "data/imagenet.yaml")
    assert data.splits.test


@pytest.mark.parametrize("name", TEST_ONLY)
def test_a_variant_of_imagenet_takes_the_place_of_the_data_that_a_run_was_trained_on(
    name, tmp_path
):
    for tree in ("imagenet", TEST_ONLY[name]):
        make_tree(tree, tmp_path)
    folder = str(tmp_path / BENCHMARKS[TEST_ONLY[name]].folder)
    test_images = built(tmp_path, "data/imagenet.yaml", name).splits.test
    assert len(test_images) >= 3
    assert all(str(record.source).startswith(folder) for record in test_images)


PUBLISHED = yaml.safe_load("""
teacher/promptsrc_vit_l14.yaml:
  clip: {model: ViT-L-14-quickgelu, pretrained: openai, quick_gelu: null}
  vision_prompts: {length: 4, depth: 9}
  text_prompts: {length: 4, depth: 9}
  regularizers: {text: 25.0, image: 10.0, logits: 1.0}
  averaging: {mean: 15.0, std: 1.0}
  optim: {optimizer: sgd, lr: 0.005, momentum: 0.9, weight_decay: 0.0005, warmup_lr: 1.0e-5}
  max_epochs: 20
  batch_size: 8
teacher/vit_b16.yaml:
  optim: {optimizer: sgd, lr: 0.0025, momentum: 0.9, weight_decay: 0.0005, warmup_lr: 1.0e-5}
  batch_size: 4
teacher/maple.yaml:
  clip: {model: ViT-B-16-quickgelu, pretrained: openai, quick_gelu: null}
  method: coupled
  context: a photo of a
  vision_prompts: {length: 2, depth: 9}
  text_prompts: {length: 2, depth: 9}
  regularizers: {text: 0.0, image: 0.0, logits: 0.0}
  averaging: null
  optim: {optimizer: sgd, lr: 0.0035, momentum: 0.9, weight_decay: 0.0005, warmup_lr: 1.0e-5}
  max_epochs: 5
  batch_size: 4
teacher/mmrl.yaml:
  clip: {model: ViT-B-16-quickgelu, pretrained: openai, quick_gelu: null}
  vision_prompts: {length: 5, depth: 7}
  text_prompts: {length: 5, depth: 7}
  regularizers: {text: 0.0, image: 0.0, logits: 0.0}
  averaging: null
  optim: {optimizer: adamw, lr: 0.001, weight_decay: 0.0005, warmup_lr: 1.0e-5}
  max_epochs: 10
  batch_size: 4
teacher/vit_b16.yaml teacher/cross_dataset.yaml:
  vision_prompts: {length: 4, depth: 3}
  text_prompts: {length: 4, depth: 3}
  averaging: {mean: 6.0, std: 10.0}
  optim: {optimizer: sgd, lr: 0.0025, momentum: 0.9, weight_decay: 0.0005, warmup_lr: 1.0e-5}
  max_epochs: 20
  batch_size: 4
teacher/few_shot.yaml: {averaging: {mean: 30.0, std: 30.0}, max_epochs: 50}
teacher/few_shot.yaml teacher/few_shot_late.yaml: {averaging: {mean: 45.0, std: 5.0}, max_epochs: 50}
student/promptkd_vit_b16.yaml:
  vision_prompts: {length: 4, depth: 9, init: normal}
  loss: {weight: 1000.0, temperature: 1.0, kind: kl}
  max_epochs: 20
  batch_size: 8
student/kd_weight_200.yaml: {loss: {weight: 200.0, temperature: 1.0, kind: kl}}
student/cross_dataset.yaml:
  vision_prompts: {length: 4, depth: 3, init: normal}
  loss: {weight: 1000.0, temperature: 1.0, kind: kl}
  max_epochs: 20
""")
"""Settings of the papers by the configs over the published one."""


@pytest.mark.parametrize("files", PUBLISHED)
def test_published_settings_are_those_of_the_papers(files, published):
    stage = published[files.partition("/")[0]]
    for file in files.split():
        stage = stage.derive(read_config(str(CONFIGS / file)))
    config = stage.config.as_dict()
    settings = config["trainer"] | config["data"]["init_args"] | config["model"]["init_args"]
    for name, value in PUBLISHED[files].items():
        expected = settings[name] | value if isinstance(value, dict) else value
        assert settings[name] == expected, name
