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


def test_a_campaign_has_a_table_of_mean_average_precisions(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kdpl.benchmark.runner.in_subprocess", in_this_process)
    pages = {"dataset": "table", "root": str(table), "num_workers": 0}
    pages["classes"] = {"label_separator": ";", "empty_labels": "no_class"}
    data = {"class_path": "kdpl.DomainDataModule", "init_args": pages}
    (tmp_path / "pages.yaml").write_text(yaml.safe_dump({"data": data}))
    rows = {
        "student": {"student": str(CONFIGS / "student/quickstart.yaml"), "of": "teacher"},
        "teacher": {"teacher": str(CONFIGS / "teacher/quickstart.yaml")},
    }
    campaign = {"protocols": ["few_shot"], "shots": [2], "datasets": [str(tmp_path / "pages.yaml")]}
    campaign |= {"configs": [str(CONFIGS / "trainer/cpu.yaml")], "rows": rows}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(campaign))
    out = tmp_path / "out"
    assert main(["benchmark", str(tmp_path / "mine.yaml"), f"--out={out}", *SHORT]) == 0
    said = capsys.readouterr().out
    results = [json.loads(path.read_bytes())["metrics"] for path in out.rglob("results.json")]
    for metrics in results:
        assert f"mAP {100 * metrics['test/map']:.2f}, macro F1" in said

    assert main(["table", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "mean average precision of pages, whose images have several labels" in shown
    assert len(results) == 2
    for metrics in results:
        assert f" {100 * metrics['test/map']:.1f} |" in shown
    assert not [*out.rglob("probe")]
