"""Fits that are resumed, and tests on several processes, give what one that runs through gives."""

import csv
import shutil

import pytest
import torch
from runs import CONFIGS, SHORT, STUDENT, TEACHER, at_step, start_process

from kdpl.__main__ import main
from kdpl.multilabel.metrics import MultiLabelMetrics
from kdpl.runtime.predictions import read_results


def interrupt():
    raise KeyboardInterrupt


def fit(table, out, stage, *more, interrupted_after=None):
    options = [
        f"--config={CONFIGS}/trainer/cpu.yaml",
        "--data.class_path=kdpl.DomainDataModule",
        "--data.init_args.dataset=table",
        f"--data.init_args.root={table}",
        "--data.init_args.classes.label_separator=;",
        "--data.init_args.classes.empty_labels=no_class",
        "--data.init_args.shots=4",
        "--data.init_args.num_workers=0",
    ]
    command = ["fit", *options, *stage, *SHORT, "--checkpoint_every=1", f"--out={out}", *more]
    if interrupted_after is not None:
        with at_step(interrupted_after, interrupt):
            assert main(command) == 130
    assert main(command) == 0


def test_a_resumed_fit_of_either_stage_ends_with_the_same_weights(table, tmp_path):
    small = ["--data.init_args.batch_size=4"]
    fit(table, tmp_path / "whole", TEACHER, *small)
    fit(table, tmp_path / "resumed", TEACHER, *small, interrupted_after=2)
    for name in ("class_vectors.safetensors", "prompts.safetensors"):
        whole, resumed = ((tmp_path / run / name).read_bytes() for run in ("whole", "resumed"))
        assert whole == resumed

    own = [f"--model.init_args.teacher={tmp_path}/whole", *small]
    fit(table, tmp_path / "student", STUDENT, *own)
    fit(table, tmp_path / "student2", STUDENT, *own, interrupted_after=4)
    for name in ("classifier.json", "model.safetensors"):
        whole, resumed = (
            (tmp_path / run / "classifier" / name).read_bytes() for run in ("student", "student2")
        )
        assert whole == resumed


@pytest.mark.slow
def test_a_test_on_two_processes_has_the_same_numbers_and_tables(run, tmp_path):
    shutil.copytree(run / "student", tmp_path / "student")
    config = tmp_path / "student" / "config.yaml"
    names = ("test_predictions.csv", "per_class.csv")
    before = {name: table_of(tmp_path / "student" / name) for name in names}
    options = [f"--config={config}", f"--out={tmp_path}/student", "--trainer.devices=2"]
    # in a process of its own, which starts the other
    process = start_process(["test", *options, "--trainer.strategy=ddp"])
    assert process.wait() == 0, process.stderr.read()
    results, known = read_results(tmp_path / "student"), read_results(run / "student")
    assert results == pytest.approx(known, abs=1e-6)
    # batches of other sizes round differently
    for name in names:
        texts, numbers = table_of(tmp_path / "student" / name)
        assert texts == before[name][0]
        assert numbers == pytest.approx(before[name][1], abs=2e-6)


def table_of(file):
    """Return the cells of a table that are no numbers, the numbers, and where each is."""
    texts, numbers = {}, {}
    with file.open(newline="") as opened:
        for place, cell in enumerate(cell for row in csv.reader(opened) for cell in row):
            try:
                numbers[place] = float(cell)
            except ValueError:
                texts[place] = cell
    return texts, numbers


def test_metrics_of_parts_are_those_of_the_whole():
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(31, 4, generator=draw), torch.rand(31, 4, generator=draw) < 0.3
    whole, parts = MultiLabelMetrics(2), MultiLabelMetrics(2)
    whole.update(logits, labels.float())
    # as processes see them
    for rank in range(3):
        parts.update(logits[rank::3], labels[rank::3].float())
    assert whole.compute() == parts.compute()
