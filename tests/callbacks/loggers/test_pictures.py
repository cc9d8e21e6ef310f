"""What W&B and other loggers are given of a test."""

from unittest.mock import Mock

import pytest
from lightning.pytorch.loggers import Logger, WandbLogger
from PIL import Image

from kdpl.callbacks.loggers.pictures import MATRIX, MATRIX_CLASSES, PREDICTIONS, log_test
from kdpl.runtime.predictions import ImagePrediction

NAMES = ["cat", "猫", "a name " * 20]
# by label, prediction and probability
TESTED = [(0, 0, 0.9), (0, 1, 0.6), (1, 1, 0.4), (1, 2, 0.8), (2, 2, 1.0)]
PREDICTED = [
    ImagePrediction(i, f"{i}.png", NAMES[y], NAMES[p], q, y, p)
    for i, (y, p, q) in enumerate(TESTED)
]


def logged(predictions, names, images):
    """What W&B is given, and the sources of the images that are opened."""
    logger, other, opened = Mock(spec=WandbLogger), Mock(spec=Logger), []

    def open_image(source):
        opened.append(source)
        return Image.new("RGB", (300, 20), "orange")

    data = Mock(class_names=names, **{"splits.open_image": open_image})
    log_test([logger, other], predictions, data, images, {"estimate/acc": 0.5}, 7)
    for each in (logger, other):
        each.log_metrics.assert_called_once_with({"estimate/acc": 0.5}, 7)
    calls = logger.experiment.log.call_args_list
    return {key: value for call in calls for key, value in call.args[0].items()}, opened


def test_the_most_certain_mistakes_come_first_and_then_the_least_certain_hits():
    shown, opened = logged(PREDICTED, NAMES, 4)
    assert opened == ["3.png", "1.png", "2.png", "0.png"]
    assert shown.keys() == {MATRIX, PREDICTIONS, "trainer/global_step"}
    assert [row[1:3] for row in shown[PREDICTIONS].data][:2] == [["猫", NAMES[2]], ["cat", "猫"]]


@pytest.mark.parametrize(
    ("predictions", "classes", "images", "expected"),
    [
        (PREDICTED, 3, 0, {MATRIX}),
        (PREDICTED, MATRIX_CLASSES + 1, 1, {PREDICTIONS}),
        # of several labels an image
        ([], 3, 4, set()),
    ],
)
def test_what_cannot_be_read_or_is_not_wanted_is_left_out(predictions, classes, images, expected):
    names = NAMES + ["more"] * (classes - len(NAMES))
    shown = logged(predictions, names, images)[0].keys()
    assert shown - {"trainer/global_step"} == expected
