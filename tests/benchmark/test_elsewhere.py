import pytest
import yaml
from campaigns import FEW, ROOT, SOURCE, make_trees, started, written
from runs import rows_of

from kdpl.__main__ import main
from kdpl.benchmark.results import read_all


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_what_is_tuned_on_a_source_is_tested_elsewhere_and_a_student_takes_over_the_new_class_names(tmp_path):
    data, out = make_trees(tmp_path / "data"), tmp_path / "out"
    process = started(written(tmp_path, SOURCE), f"--root={data}", f"--out={out}", *FEW)
    text, err = process.communicate(timeout=120)
    assert process.returncode == 0, text + err
    found = {(r.protocol, r.dataset, r.row): r for r in read_all(out)}
    assert sorted(found) == [
        (protocol, dataset, row)
        for protocol, datasets in (("cross_dataset", ["dtd"]), ("domain_generalization", ["imagenet", "imagenet_a"]))
        for dataset in datasets
        for row in ("student", "teacher")
    ]
    assert not any(r.transductive for r in found.values())
    labels = {"dtd": {"apple", "Zebra crossing", "sea or lake"}, "imagenet_a": {"goldfish", "great white shark"}}
    for folder, dataset in (("cross_dataset/dtd", "dtd"), ("domain_generalization/imagenet_a", "imagenet_a")):
        for row in ("teacher", "student"):
            answers = rows_of(out / folder / "seed_1" / row / "test_predictions.csv")
            assert {answer["label"].replace("_", " ") for answer in answers} == labels[dataset]
            assert {answer["prediction"].replace("_", " ") for answer in answers} <= labels[dataset]
    config = yaml.safe_load((out / "cross_dataset/dtd/seed_1/student/config.yaml").read_text())
    assert config["data"]["init_args"]["dataset"] == "dtd"
    assert config["model"]["init_args"]["teacher"] == str(out / "source/imagenet/seed_1/teacher")
    assert main(["table", str(out)]) == 0
    assert "missing" not in (out / "table.md").read_text()
