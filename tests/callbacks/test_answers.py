import json
from collections import Counter

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset
from world import quiet_trainer

from kdpl.callbacks.answers import TestAnswers
from kdpl.data.splits import Record
from kdpl.runtime.logit_sketch import LogitSketch
from kdpl.runtime.predictions import read_answers, read_results

LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 3.0], [1.0, 4.0, 0.0], [0.5, 0.2, 0.1], [0.0, 9.0, 0.0]])
LABELS = torch.tensor([0, 1, 1, 2, 1])
NAMES = ("a, b", 'c "d"', "e")


class Fixed(LightningModule):
    """Answers with given logits, in an order of the images that is not theirs."""

    def test_step(self, batch, batch_idx):
        del batch_idx
        logits, labels, indices = batch
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.log("test/acc", accuracy, batch_size=len(labels))
        self.log("other", accuracy, batch_size=len(labels))
        return {"logits": logits, "labels": labels, "indices": indices}


class Images(LightningDataModule):
    class_names = NAMES
    test_records = tuple(Record(f"image {i}.png", int(y)) for i, y in enumerate(LABELS))

    def test_dataloader(self):
        order = torch.tensor([3, 0, 4, 2, 1])
        return DataLoader(TensorDataset(LOGITS[order], LABELS[order], order), batch_size=2)


@pytest.fixture
def tested(tmp_path):
    callback = TestAnswers()
    quiet_trainer(tmp_path, callbacks=[callback]).test(Fixed(), datamodule=Images(), verbose=False)
    return tmp_path


def test_each_image_has_its_source_label_answer_and_probability(tested):
    answers = read_answers(tested)
    assert [a.index for a in answers] == [0, 1, 2, 3, 4]
    assert [a.source for a in answers] == [f"image {i}.png" for i in range(5)]
    assert [a.label for a in answers] == [NAMES[y] for y in LABELS]
    assert [a.prediction for a in answers] == [NAMES[i] for i in (0, 2, 1, 0, 1)]
    expected = [float((row.double().exp() / row.double().exp().sum()).max()) for row in LOGITS]
    assert [a.probability for a in answers] == pytest.approx(expected, abs=1e-6)


def test_accuracies_stand_for_a_finished_test_and_come_after_what_others_make_of_the_answers(tmp_path):
    class Draws(Callback):
        def __init__(self, fails):
            self.fails = fails

        def on_test_end(self, *_):
            assert len(read_answers(tmp_path)) == 5
            assert read_results(tmp_path) == {}
            if self.fails:
                raise OSError("disk full")

    def test(fails):
        callbacks = [TestAnswers(), Draws(fails)]
        quiet_trainer(tmp_path, callbacks=callbacks).test(Fixed(), datamodule=Images(), verbose=False)

    with pytest.raises(OSError, match="disk full"):
        test(fails=True)
    assert read_results(tmp_path) == {}
    test(fails=False)
    assert read_results(tmp_path)["images"] == 5


def test_the_accuracies_are_those_of_the_answers_and_of_the_test_alone(tested):
    answers = read_answers(tested)
    right = sum(a.label == a.prediction for a in answers)
    assert read_results(tested) == {"images": 5, "test/acc": pytest.approx(right / 5)}


def test_a_second_test_starts_anew(tmp_path):
    callback = TestAnswers()
    for _ in range(2):
        quiet_trainer(tmp_path, callbacks=[callback]).test(Fixed(), datamodule=Images(), verbose=False)
    assert len(read_answers(tmp_path)) == 5


def test_a_real_test_answers_each_image_once_and_its_accuracy_can_be_counted(student_run):
    answers = read_answers(student_run)
    assert Counter(a.index for a in answers) == Counter(range(899))
    results = json.loads((student_run / "test.json").read_text())
    assert results["test/acc"] == pytest.approx(sum(a.label == a.prediction for a in answers) / 899, rel=1e-6)


def test_the_sketch_of_the_logits_is_in_the_order_of_the_images(tested):
    expected = LOGITS.sort(dim=1, descending=True).values - LOGITS.amax(dim=1, keepdim=True)
    assert torch.equal(LogitSketch.load(tested).values, expected.half())


def test_the_sketch_of_a_real_test_gives_the_confidences_of_its_answers(student_run):
    confidences = [a.probability for a in read_answers(student_run)]
    assert LogitSketch.load(student_run).confidences().tolist() == pytest.approx(confidences, abs=2e-3)
