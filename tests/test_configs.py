"""Every file in configs/ is parsed and run here; miniature CLIPs stand in for those whose weights are a download."""

import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
import yaml
from benchmark_tree import TRAINABLE, VARIANTS, make_tree
from runs import CONFIGS, DATA, SHORT, STUDENT, TEACHER, configs, image_folder, rows_of
from runs import test as run_test

from kdpl import Classifier, ClassVectors
from kdpl.__main__ import main
from kdpl.data.readers.benchmark import BENCHMARKS
from kdpl.runtime.predictions import read_results

ONE_EPOCH = [*SHORT, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
TINY_TEACHER = ["--model.init_args.clip.model=tiny-teacher", "--model.init_args.clip.pretrained=glyphs"]
TINY_STUDENT = ["--model.init_args.clip.model=tiny-student", "--model.init_args.clip.pretrained=glyphs"]
TINY_RESNET = ["--model.init_args.clip.model=tiny-resnet", "--model.init_args.clip.pretrained=glyphs"]
# the miniature towers have fewer layers than the published settings prompt
SHALLOW = ["--model.init_args.vision_prompts.depth=2"]
SHALLOW_TEXT = ["--model.init_args.text_prompts.depth=2"]
PUBLISHED_TEACHER = configs("teacher/promptsrc_vit_l14.yaml")
LOGGERS = ("csv", "tensorboard", "wandb")
NEAR = ["--model.init_args.averaging={mean: 1, std: 1}"]

DEEP = [*SHALLOW, *SHALLOW_TEXT]


def teacher(*overlays, more=()):
    """The published teacher with overlays, on a miniature CLIP."""
    return [*DATA, *PUBLISHED_TEACHER, *configs(*overlays), *TINY_TEACHER, *more]


TEACHERS = {
    "data/digits.yaml": [*DATA, *TEACHER],
    "data/base_to_novel.yaml": [*DATA, *configs("data/base_to_novel.yaml"), *TEACHER],
    "trainer/cpu.yaml": [*DATA, *TEACHER],
    "trainer/gpu.yaml": [*DATA, *TEACHER, *configs("trainer/gpu.yaml"), "--trainer.accelerator=cpu"],
    **{f"logger/{name}.yaml": [*DATA, *TEACHER, *configs(f"logger/{name}.yaml")] for name in LOGGERS},
    "teacher/quickstart.yaml": [*DATA, *TEACHER],
    "teacher/promptsrc_vit_l14.yaml": teacher(more=[*DEEP, *NEAR]),
    "teacher/vit_b16.yaml": teacher("teacher/vit_b16.yaml", more=[*DEEP, *NEAR]),
    "teacher/cross_dataset.yaml": teacher("teacher/cross_dataset.yaml", more=SHALLOW_TEXT),
    "teacher/few_shot.yaml": teacher("teacher/few_shot.yaml", more=[*DEEP, *NEAR]),
    "teacher/few_shot_late.yaml": teacher("teacher/few_shot.yaml", "teacher/few_shot_late.yaml", more=[*DEEP, *NEAR]),
    "teacher/ivlp.yaml": teacher("teacher/ivlp.yaml", more=DEEP),
    "teacher/maple.yaml": teacher("teacher/maple.yaml", more=DEEP),
    "teacher/coop.yaml": teacher("teacher/coop.yaml"),
    "teacher/vpt.yaml": teacher("teacher/vpt.yaml", more=SHALLOW),
    "teacher/zero_shot.yaml": teacher("teacher/zero_shot.yaml"),
}
PUBLISHED_STUDENT = [*DATA, *configs("student/promptkd_vit_b16.yaml")]
TINY = [*TINY_STUDENT, *SHALLOW]
ABLATIONS = (
    "projector_only",
    "fine_tune",
    "own_text_features",
    "feature_l1",
    "feature_mse",
    "best_on_base_test",
)
STUDENTS = {
    "student/quickstart.yaml": [*DATA, *STUDENT],
    "student/promptkd_vit_b16.yaml": [*PUBLISHED_STUDENT, *TINY],
    **{
        f"student/{name}.yaml": [*PUBLISHED_STUDENT, *configs(f"student/{name}.yaml"), *TINY]
        for name in ("kd_weight_200", "cross_dataset", "vit_b32")
    },
    **{
        f"student/{name}.yaml": [*PUBLISHED_STUDENT, *configs(f"student/{name}.yaml"), *TINY_RESNET]
        for name in ("rn50", "mobileclip_s1")
    },
    **{f"student/{name}.yaml": [*DATA, *STUDENT, *configs(f"student/{name}.yaml")] for name in ABLATIONS},
}
BENCHMARK = {f"data/{name}.yaml": name for name in TRAINABLE}
TEST_ONLY = {f"data/{name}.yaml": name for name in ("imagenetv2", *VARIANTS)}
# in tests of their own below
ELSEWHERE = {
    "data/folder.yaml",
    "data/table.yaml",
    "trainer/ddp.yaml",
    "trainer/ddp_sync_batchnorm.yaml",
    *BENCHMARK,
    *TEST_ONLY,
}


def settings(name):
    return yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))


def test_every_config_is_run_by_a_test():
    names = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*") if path.is_file()}
    # all in tests/benchmark
    of_many_runs = {name for name in names if name.startswith(("benchmark/", "sweep/"))}
    assert names - of_many_runs == {*TEACHERS, *STUDENTS, *ELSEWHERE}


@pytest.mark.parametrize("name", [n for n in TEACHERS if n not in ("data/digits.yaml", "trainer/cpu.yaml")])
def test_a_teachers_config_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    epochs = [arg for arg in ONE_EPOCH if name != "teacher/zero_shot.yaml" or "max_epochs" not in arg]
    assert main(["fit", *TEACHERS[name], *epochs, f"--out={tmp_path / 'out'}"]) == 0
    vectors = ClassVectors.load(tmp_path / "out" / "class_vectors.safetensors")
    assert len(vectors.class_names) == 10
    assert vectors.num_base == (5 if "base_to_novel" in name else None)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_students_config_runs(name, tmp_path, teacher_run):
    args = [*STUDENTS[name], *ONE_EPOCH, f"--model.init_args.teacher={teacher_run}", f"--out={tmp_path / 'out'}"]
    assert main(["fit", *args]) == 0
    assert len(Classifier.load(tmp_path / "out" / "classifier").class_names) == 10


def test_the_config_of_image_folders_runs(tmp_path):
    image_folder(tmp_path / "data", splits=("train", "val", "test"))
    args = [*configs("data/folder.yaml", "trainer/cpu.yaml"), *TEACHER, f"--data.init_args.root={tmp_path / 'data'}"]
    few = ["--data.init_args.shots=4", "--data.init_args.num_workers=0", f"--out={tmp_path / 'out'}"]
    assert main(["fit", *args, *ONE_EPOCH, *few]) == 0
    assert run_test(tmp_path / "out") == 0
    assert {row["label"] for row in rows_of(tmp_path / "out/test_predictions.csv")} == {"cat", "dog"}


def test_the_config_of_a_table_runs(tmp_path):
    image_folder(tmp_path / "data", splits=("train", "test"))
    images = sorted((tmp_path / "data").rglob("*.png"))
    rows = [f"{image.relative_to(tmp_path)},{image.parent.name},{image.parent.parent.name}" for image in images]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label,split", *rows]))
    args = [*configs("data/table.yaml", "trainer/cpu.yaml"), *TEACHER, f"--data.init_args.root={tmp_path}/labels.csv"]
    few = ["--data.init_args.shots=4", "--data.init_args.num_workers=0", f"--out={tmp_path / 'out'}"]
    assert main(["fit", *args, *ONE_EPOCH, *few]) == 0
    assert run_test(tmp_path / "out") == 0
    assert {row["label"] for row in rows_of(tmp_path / "out/test_predictions.csv")} == {"cat", "dog"}


@pytest.mark.parametrize("name", BENCHMARK)
def test_a_benchmark_datasets_config_runs(name, tmp_path):
    make_tree(BENCHMARK[name], tmp_path)
    args = [*configs(name, "trainer/cpu.yaml"), *TEACHER, f"--data.init_args.root={tmp_path}"]
    few = ["--data.init_args.shots=1", "--data.init_args.num_workers=0", f"--out={tmp_path / 'out'}"]
    assert main(["fit", *args, *ONE_EPOCH, *few]) == 0
    assert len(ClassVectors.load(tmp_path / "out" / "class_vectors.safetensors").class_names) == 3


@pytest.mark.parametrize("name", TEST_ONLY)
def test_a_variant_of_imagenet_takes_the_place_of_the_data_that_a_run_was_trained_on(name, tmp_path):
    for each in ("imagenet", TEST_ONLY[name]):
        make_tree(each, tmp_path)
    data = [*configs("data/imagenet.yaml", "trainer/cpu.yaml"), f"--data.init_args.root={tmp_path}"]
    few = ["--data.init_args.shots=1", "--data.init_args.num_workers=0", f"--out={tmp_path / 'out'}"]
    assert main(["fit", *data, *TEACHER, *ONE_EPOCH, *few]) == 0
    checkpoint = f"--ckpt_path={tmp_path / 'out/checkpoints/last.ckpt'}"
    assert run_test(tmp_path / "out", *configs(name), checkpoint, f"--out={tmp_path / 'elsewhere'}") == 0
    folder = str(tmp_path / BENCHMARKS[TEST_ONLY[name]].folder)
    answers = rows_of(tmp_path / "elsewhere/test_predictions.csv")
    assert len(answers) >= 3
    assert all(row["source"].startswith(folder) for row in answers)


def printed(capsys, *args):
    with pytest.raises(SystemExit):
        main(["fit", *args, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def test_published_settings_are_those_of_the_papers(capsys):
    data = configs("data/digits.yaml", "data/base_to_novel.yaml")
    teacher = printed(capsys, *data, *PUBLISHED_TEACHER)
    model = teacher["model"]["init_args"]
    assert model["clip"] == {"model": "ViT-L-14-quickgelu", "pretrained": "openai", "quick_gelu": None}
    assert model["vision_prompts"] == model["text_prompts"] == {"length": 4, "depth": 9}
    assert model["regularizers"] == {"text": 25.0, "image": 10.0, "logits": 1.0}
    assert model["averaging"] == {"mean": 15.0, "std": 1.0}
    assert model["optim"] == {
        "optimizer": "sgd",
        "lr": 0.005,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "warmup_lr": 1e-05,
    }
    assert (teacher["trainer"]["max_epochs"], teacher["data"]["init_args"]["batch_size"]) == (20, 8)
    smaller = printed(capsys, *data, *PUBLISHED_TEACHER, *configs("teacher/vit_b16.yaml"))
    assert (smaller["model"]["init_args"]["optim"]["lr"], smaller["data"]["init_args"]["batch_size"]) == (0.0025, 4)
    maple = printed(capsys, *data, *PUBLISHED_TEACHER, *configs("teacher/maple.yaml"))
    model = maple["model"]["init_args"]
    assert model["clip"] == {"model": "ViT-B-16-quickgelu", "pretrained": "openai", "quick_gelu": None}
    assert (model["method"], model["context"], model["averaging"]) == ("coupled", "a photo of a", None)
    assert model["vision_prompts"] == model["text_prompts"] == {"length": 2, "depth": 9}
    assert model["regularizers"] == {"text": 0.0, "image": 0.0, "logits": 0.0}
    assert model["optim"] == {
        "optimizer": "sgd",
        "lr": 0.0035,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "warmup_lr": 1e-05,
    }
    assert (maple["trainer"]["max_epochs"], maple["data"]["init_args"]["batch_size"]) == (5, 4)
    across = printed(capsys, *data, *PUBLISHED_TEACHER, *configs("teacher/cross_dataset.yaml"))["model"]["init_args"]
    assert across["averaging"] == {"mean": 6.0, "std": 10.0}
    assert across["vision_prompts"]["depth"] == across["text_prompts"]["depth"] == 3
    for overlays, averaging in (
        (["teacher/few_shot.yaml"], {"mean": 30.0, "std": 30.0}),
        (["teacher/few_shot.yaml", "teacher/few_shot_late.yaml"], {"mean": 45.0, "std": 5.0}),
    ):
        longer = printed(capsys, *data, *PUBLISHED_TEACHER, *configs(*overlays))
        assert longer["model"]["init_args"]["averaging"] == averaging
        assert longer["trainer"]["max_epochs"] == 50
    softer = configs("student/promptkd_vit_b16.yaml", "student/kd_weight_200.yaml")
    assert printed(capsys, *data, *softer, "--model.init_args.teacher=t")["model"]["init_args"]["kd_weight"] == 200.0
    student = printed(capsys, *data, *configs("student/promptkd_vit_b16.yaml"), "--model.init_args.teacher=t")
    model = student["model"]["init_args"]
    assert (model["kd_weight"], model["temperature"], model["prompt_init"]) == (1000.0, 1.0, "normal")
    assert model["vision_prompts"] == {"length": 4, "depth": 9}
    assert (student["trainer"]["max_epochs"], student["data"]["init_args"]["batch_size"]) == (20, 8)


def test_what_the_gpu_and_ddp_configs_say():
    assert settings("trainer/gpu.yaml") == {"trainer": {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed"}}
    assert settings("trainer/ddp.yaml") == {"trainer": {"devices": "auto", "strategy": "ddp"}}
    # the test of what it does is in tests/distributed/test_batch_norm.py
    assert settings("trainer/ddp_sync_batchnorm.yaml") == {"trainer": {"sync_batchnorm": True}}


def test_in_mixed_precision_what_is_trained_stays_in_float32(tmp_path):
    assert main(["fit", *TEACHERS["trainer/gpu.yaml"], *ONE_EPOCH, f"--out={tmp_path / 'out'}"]) == 0
    state = torch.load(tmp_path / "out/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.slow
def test_two_processes_distil_and_test_as_one_does(tmp_path, teacher_run):
    out = tmp_path / "out"
    both = ["--trainer.devices=2"]
    fit = [*DATA, *STUDENT, *ONE_EPOCH, *configs("trainer/ddp.yaml"), *both, f"--model.init_args.teacher={teacher_run}"]

    def command(*args):
        return subprocess.run(
            [sys.executable, "-m", "kdpl", *args],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    done = command("fit", *fit, f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("classifier: ") == 1
    done = command("test", f"--config={out}/config.yaml")
    assert done.returncode == 0, done.stderr
    answers = rows_of(out / "test_predictions.csv")
    assert Counter(int(row["index"]) for row in answers) == Counter(range(899))
    right = sum(row["label"] == row["prediction"] for row in answers)
    assert read_results(out)["images"] == 899
    assert read_results(out)["test/acc"] == pytest.approx(right / 899, rel=1e-6)
    assert len(Classifier.load(out / "classifier").class_names) == 10
    assert {path.name for path in out.rglob(".*")} == {".lock"}
    together = [(row["prediction"], row["label"]) for row in answers]
    assert main(["test", f"--config={out}/config.yaml", "--trainer.devices=1", "--trainer.strategy=auto"]) == 0
    alone = [(row["prediction"], row["label"]) for row in rows_of(out / "test_predictions.csv")]
    assert alone == together
