"""The service, the demo and a campaign's table on several labels."""

import json
from unittest.mock import MagicMock

import pytest
import yaml
from campaigns import in_this_process
from runs import CONFIGS, SHORT

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.multilabel.task import MultiLabel
from kdpl.serve.demo.page import Demo


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


def test_a_campaign_has_a_table_of_mean_average_precisions(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kdpl.benchmark.runner.in_subprocess", in_this_process)
    pages = {"dataset": "table", "root": str(table), "num_workers": 0}
    pages["classes"] = {"label_separator": ";", "empty_labels": "no_class"}
    data = {"class_path": "kdpl.DomainDataModule", "init_args": pages}
    (tmp_path / "pages.yaml").write_text(yaml.safe_dump({"data": data}))
    campaign = {
        "protocols": ["few_shot"],
        "shots": [2],
        "datasets": [str(tmp_path / "pages.yaml")],
        "configs": [str(CONFIGS / "trainer/cpu.yaml")],
        "rows": {"teacher": {"teacher": str(CONFIGS / "teacher/quickstart.yaml")}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(campaign))
    out, short = tmp_path / "out", [*SHORT, "--trainer.max_epochs=1"]
    assert main(["benchmark", str(tmp_path / "mine.yaml"), f"--out={out}", *short]) == 0
    (results,) = out.rglob("results.json")
    precision = 100 * json.loads(results.read_bytes())["metrics"]["test/map"]
    assert f"mAP {precision:.2f}, macro F1" in capsys.readouterr().out

    assert main(["table", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "mean average precision of pages" in shown
    assert f" {precision:.1f} |" in shown
    assert not [*out.rglob("probe")]
