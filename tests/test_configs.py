"""Every file in configs/ is parsed and run here; miniature CLIPs stand in for those whose weights are a download."""

import json

import pytest
import yaml
from benchmark_tree import TRAINABLE, VARIANTS, make_tree
from runs import (
    CONFIGS,
    DATA,
    SHORT,
    STUDENT,
    TEACHER,
    configs,
    image_folder,
    rows_of,
    start_process,
)
from runs import test as run_test

from kdpl import Classifier, ClassVectors
from kdpl.__main__ import main
from kdpl.benchmark.readers import BENCHMARKS
from kdpl.runtime.predictions import read_results

ONE_EPOCH = [
    *SHORT,
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
]
NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*") if path.is_file())
PUBLISHED_TEACHER, PUBLISHED_STUDENT = (
    "teacher/promptsrc_vit_l14.yaml",
    "student/promptkd_vit_b16.yaml",
)
# by the runs that all tests share
QUICKSTART = {
    "data/digits.yaml",
    "trainer/cpu.yaml",
    "teacher/quickstart.yaml",
    "student/quickstart.yaml",
}
TEACHERS = [name for name in NAMES if name.startswith("teacher/") and name not in QUICKSTART]
# of several labels an image, in tests/multilabel
SEVERAL = {"student/local_views.yaml"}
STUDENTS = [
    name
    for name in NAMES
    if name.startswith("student/") and name not in QUICKSTART and name not in SEVERAL
]
OVERLAYS = ("trainer/gpu.yaml", "data/base_to_novel.yaml", "logger/csv.yaml")
BENCHMARK = {f"data/{name}.yaml": name for name in TRAINABLE}
TEST_ONLY = {f"data/{name}.yaml": name for name in ("imagenetv2", *VARIANTS)}
# in tests of their own, below and in tests/runtime
OWN = {"data/folder.yaml", "data/table.yaml", "trainer/ddp.yaml"}
OWN |= {f"logger/{name}.yaml" for name in ("mlflow", "tensorboard", "wandb")}


def test_every_config_is_run_by_a_test():
    # all in tests/benchmark
    of_many_runs = {name for name in NAMES if name.startswith(("benchmark/", "sweep/"))}
    assert {*NAMES} - of_many_runs == {
        *QUICKSTART,
        *OVERLAYS,
        *TEACHERS,
        *STUDENTS,
        *SEVERAL,
        *BENCHMARK,
        *TEST_ONLY,
        *OWN,
    }


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_config_over_those_of_the_quickstart_runs(name, tmp_path):
    args = [*DATA, *TEACHER, *configs(name), *ONE_EPOCH, "--trainer.accelerator=cpu"]
    assert main(["fit", *args, f"--out={tmp_path / 'out'}"]) == 0
    vectors = ClassVectors.load(tmp_path / "out" / "class_vectors.safetensors")
    assert (len(vectors.class_names), vectors.num_base) == (
        10,
        5 if "base_to_novel" in name else None,
    )


def fit_over(base, name, out, *more, clip="test-deep"):
    """Fit with a config over a published one, on a random CLIP with as many layers, or a small network of timm."""
    about = (
        ["pretrained=random", "image_size=32"] if clip.startswith("timm:") else ["pretrained=noise"]
    )
    model = [f"--model.init_args.clip.{each}" for each in (f"model={clip}", *about)]
    assert main(["fit", *DATA, *configs(base, name), *model, f"--out={out}", *more]) == 0


# the layers of the random CLIP are nine
FEWER_LAYERS = {"teacher/mmrl.yaml": ["--model.init_args.method.init_args.first_layer=3"]}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teachers_config_runs(name, tmp_path):
    # the published averages are those of later epochs
    one_epoch = [*ONE_EPOCH, "--model.init_args.averaging={mean: 1, std: 1}"]
    fit_over(
        PUBLISHED_TEACHER,
        name,
        tmp_path,
        *(one_epoch if name != "teacher/zero_shot.yaml" else []),
        *FEWER_LAYERS.get(name, []),
    )
    assert len(ClassVectors.load(tmp_path / "class_vectors.safetensors").class_names) == 10


STAND_INS = {
    "student/rn50.yaml": "test-resnet",
    "student/mobileclip_s1.yaml": "test-timm",
    "student/mobileclip2.yaml": "test-timm",
    "student/mobilenetv4.yaml": "timm:test_resnet",
    "student/quickstart_timm.yaml": "timm:test_resnet",
    "student/quickstart_timm_64.yaml": "timm:test_resnet",
}


@pytest.mark.parametrize("name", STUDENTS)
def test_a_students_config_runs(name, tmp_path, teacher_run):
    clip = STAND_INS.get(name, "test-deep")
    given = [f"--model.init_args.teacher={teacher_run}", *ONE_EPOCH]
    if name.startswith("student/refined"):
        given += (
            ["--model.init_args.target=kdpl.targets.refinement.target.Refined"]
            if name == "student/refined.yaml"
            else []
        )
        given += ["--model.init_args.target.views=1"]
        if "dino" in name:
            encoder = {"model": "timm:test_vit", "pretrained": "random", "image_size": 32}
            given += [f"--model.init_args.target.encoder={json.dumps(encoder)}"]
    fit_over(PUBLISHED_STUDENT, name, tmp_path, *given, clip=clip)
    assert len(Classifier.load(tmp_path / "classifier").class_names) == 10


def fit_on(data, root, out, shots=1):
    """Fit a teacher for an epoch on a dataset in a folder."""
    args = [
        *configs(data, "trainer/cpu.yaml"),
        *TEACHER,
        *ONE_EPOCH,
        f"--data.init_args.root={root}",
        f"--out={out}",
    ]
    return main(["fit", *args, f"--data.init_args.shots={shots}", "--data.init_args.num_workers=0"])


@pytest.mark.parametrize(
    ("config", "root"), [("data/folder.yaml", "data"), ("data/table.yaml", "labels.csv")]
)
def test_the_configs_of_own_images_run(config, root, tmp_path):
    image_folder(tmp_path / "data", splits=("train", "val", "test"))
    images = sorted((tmp_path / "data").rglob("*.png"))
    rows = [
        f"{image.relative_to(tmp_path)},{image.parent.name},{image.parent.parent.name}"
        for image in images
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label,split", *rows]))
    assert fit_on(config, tmp_path / root, tmp_path / "out", shots=4) == 0
    assert run_test(tmp_path / "out") == 0
    assert {row["label"] for row in rows_of(tmp_path / "out/test_predictions.csv")} == {
        "cat",
        "dog",
    }


@pytest.mark.parametrize("name", BENCHMARK)
def test_a_benchmark_datasets_config_runs(name, tmp_path):
    make_tree(BENCHMARK[name], tmp_path)
    assert fit_on(name, tmp_path, tmp_path / "out") == 0
    assert len(ClassVectors.load(tmp_path / "out" / "class_vectors.safetensors").class_names) == 3


@pytest.mark.parametrize("name", TEST_ONLY)
def test_a_variant_of_imagenet_takes_the_place_of_the_data_that_a_run_was_trained_on(
    name, tmp_path
):
    for each in ("imagenet", TEST_ONLY[name]):
        make_tree(each, tmp_path)
    assert fit_on("data/imagenet.yaml", tmp_path, tmp_path / "out") == 0
    checkpoint = f"--ckpt_path={tmp_path / 'out/checkpoints/last.ckpt'}"
    assert (
        run_test(tmp_path / "out", *configs(name), checkpoint, f"--out={tmp_path / 'elsewhere'}")
        == 0
    )
    folder = str(tmp_path / BENCHMARKS[TEST_ONLY[name]].folder)
    predictions = rows_of(tmp_path / "elsewhere/test_predictions.csv")
    assert len(predictions) >= 3
    assert all(row["source"].startswith(folder) for row in predictions)


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
  loss: {kind: kl, weight: 1000.0, temperature: 1.0}
  max_epochs: 20
  batch_size: 8
student/kd_weight_200.yaml: {loss: {kind: kl, weight: 200.0, temperature: 1.0}}
student/cross_dataset.yaml:
  vision_prompts: {length: 4, depth: 3, init: normal}
  loss: {kind: kl, weight: 1000.0, temperature: 1.0}
  max_epochs: 20
""")
"""Settings of the papers by the configs over the published one."""


@pytest.mark.parametrize("files", PUBLISHED)
def test_published_settings_are_those_of_the_papers(files, capsys):
    base = PUBLISHED_STUDENT if "student" in files else PUBLISHED_TEACHER
    given = ["--model.init_args.teacher=t"] if "student" in files else []
    args = configs("data/digits.yaml", "data/base_to_novel.yaml", base, *files.split())
    with pytest.raises(SystemExit):
        main(["fit", *args, *given, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    found = {**printed["trainer"], **printed["data"]["init_args"], **printed["model"]["init_args"]}
    for name, value in PUBLISHED[files].items():
        assert found[name] == (found[name] | value if isinstance(value, dict) else value), name


@pytest.mark.slow
def test_two_processes_distil_and_test_as_one_does(tmp_path, teacher_run):
    out = tmp_path / "out"
    fit = [
        *DATA,
        *STUDENT,
        *ONE_EPOCH,
        *configs("trainer/ddp.yaml"),
        "--trainer.devices=2",
        f"--out={out}",
    ]
    for args in (
        ["fit", *fit, f"--model.init_args.teacher={teacher_run}"],
        ["test", f"--config={out}/config.yaml"],
    ):
        process = start_process(args)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert err.count("classifier: ") == (args[0] == "fit")
    predictions, results = rows_of(out / "test_predictions.csv"), read_results(out)
    assert run_test(out, "--trainer.devices=1", "--trainer.strategy=auto") == 0
    alone = rows_of(out / "test_predictions.csv")
    assert [row["prediction"] for row in alone] == [row["prediction"] for row in predictions]
    assert results["test/acc"] == pytest.approx(read_results(out)["test/acc"], rel=1e-6)
