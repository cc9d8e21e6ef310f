"""The service and the demo on a classifier of several labels."""

from unittest.mock import MagicMock

import pytest

from kdpl import Classifier
from kdpl.demo.page import Demo
from kdpl.multilabel.task import MultiLabel


@pytest.fixture(scope="module")
def folder(run):
    return run / "student" / "classifier"


def test_the_demo_shows_the_classes_above_their_thresholds(folder, table):
    classifier = Classifier.load(folder)
    image = table.parent / "test1.png"
    for threshold in (0.0, 1.0):
        classifier.task = MultiLabel([threshold] * 5)
        shown = Demo(classifier, None, 5).classify(str(image), image.name)
        if threshold:
            assert shown == "none of the classes"
        else:
            assert {*shown} == {*classifier.class_names}
            assert all(0 <= p <= 1 for p in shown.values())


def test_the_service_returns_labels_and_scores(folder, table, monkeypatch):
    pytest.importorskip("litserve")
    from kdpl.serve import api

    for name in ("end_with_parent", "configure_logging", "signal"):
        monkeypatch.setattr(api, name, MagicMock())
    service = api.ClassifierApi(str(folder))
    service.setup("cpu")
    files = [table.parent / f"test{i}.png" for i in range(3)]
    (rows,) = service.predict([[(path.name, path.read_bytes()) for path in files]])
    expected = Classifier.load(folder).predict(files)
    for path, row, own in zip(files, rows, expected, strict=True):
        assert row["path"] == path.name
        assert row["labels"] == ";".join(each.class_name for each in own)
        assert row["scores"].count(";") == max(0, len(own) - 1)
