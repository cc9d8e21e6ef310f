"""The pictures of a test that TensorBoard and MLflow show."""

from unittest.mock import Mock

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from kdpl.callbacks.loggers import pictures
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
    """What a TensorBoard logger is given, and the sources of the images that are opened."""
    logger, opened = Mock(spec=TensorBoardLogger), []

    def open_image(source):
        opened.append(source)
        return Image.new("RGB", (300, 20), "orange")

    data = Mock(class_names=names, **{"splits.open_image": open_image})
    log_test([logger, Mock()], predictions, data, images, {"estimate/acc": 0.5}, 7)
    logger.log_metrics.assert_called_once_with({"estimate/acc": 0.5}, 7)
    calls = logger.experiment.add_image.call_args_list
    return {call.args[0]: call.args[1] for call in calls}, opened


def test_the_most_certain_mistakes_come_first_and_then_the_least_certain_hits():
    shown, opened = logged(PREDICTED, NAMES, 4)
    assert opened == ["3.png", "1.png", "2.png", "0.png"]
    assert shown.keys() == {MATRIX, PREDICTIONS}
    assert (shown[PREDICTIONS][:20, :160] == (255, 165, 0)).mean() > 0.4


def test_cells_are_as_dark_as_their_share_of_the_true_class():
    matrix = np.asarray(pictures.draw_matrix(PREDICTED, NAMES))
    cell, left = 28, matrix.shape[1] - 3 * 28
    colors = matrix[cell + 2 :: cell, left + 2 :: cell].astype(int).sum(axis=2)
    # cat: one right, one wrong; the last class: one right
    assert colors[0, 0] == colors[0, 1] < colors[0, 2] == colors[2, 0] == 3 * 255
    assert colors[2, 2] < colors[0, 0]


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
    assert logged(predictions, names, images)[0].keys() == expected
