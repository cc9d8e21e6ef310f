"""The service and the demo on several labels."""

from unittest.mock import MagicMock

import pytest

from kdpl import Classifier
from kdpl.multilabel.task import MultiLabel
from kdpl.serve.demo import Demo


def test_the_demo_shows_the_classes_above_their_thresholds(several, table):
    classifier = Classifier.load(several)
    image = table.parent / "test1.png"
    classifier.task = MultiLabel([1.0] * 5)
    assert Demo(classifier, None, 5).classify(str(image), image.name) == "none of the classes"
    classifier.task = MultiLabel([0.0] * 5)
    shown = Demo(classifier, None, 5).classify(str(image), image.name)
    assert {*shown} == {*classifier.class_names}
    assert all(0 <= p <= 1 for p in shown.values())


def test_the_service_returns_labels_and_scores(several, table, monkeypatch):
    pytest.importorskip("litserve")
    from kdpl.serve import api

    for name in ("end_with_parent", "configure_logging", "signal"):
        monkeypatch.setattr(api, name, MagicMock())
    service = api.ClassifierApi(str(several))
    service.setup("cpu")
    files = [table.parent / f"test{i}.png" for i in range(3)]
    (rows,) = service.predict([[(path.name, path.read_bytes()) for path in files]])
    expected = Classifier.load(several).predict(files)
    for path, row, labels in zip(files, rows, expected, strict=True):
        assert row["path"] == path.name
        assert row["labels"] == ";".join(label.class_name for label in labels)
        assert row["scores"].count(";") == max(0, len(labels) - 1)
