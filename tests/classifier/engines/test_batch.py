import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from runs import noise
from world import refused

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.classifier.engines import BatchPredictor
from kdpl.errors import ConfigError
from kdpl.tasks import DecisionRule

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")
pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eighty noisy pictures, two of them damaged."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(80):
        noise(14, 12, seed=i).save(folder / f"{i:02}.png")
    for name in ("17", "40"):
        (folder / f"{name}.png").write_bytes(b"no image")
    return folder


def predict(classifier, pictures, out, *more):
    """The table of predict, read back."""
    main(["predict", str(classifier), str(pictures), f"--out={out}", *more])
    return pyarrow.parquet.read_table(out)


@pytest.mark.parametrize("sizes", [[80], [3, 1, 70, 6]])
def test_rows_are_those_of_predict_to_the_last_digit_however_they_are_grouped(
    sizes, classifier, pictures, tmp_path
):
    table = predict(classifier, pictures, tmp_path / "t.parquet", "--top-k=2", "--embeddings")
    predictor = BatchPredictor(str(classifier), top_k=2, embeddings=True)
    assert predictor.schema == table.schema
    paths = map(str, sorted(pictures.iterdir()))
    parts = [predictor({"path": [*islice(paths, size)]}) for size in sizes]
    assert pyarrow.concat_tables(parts) == table


def test_images_come_as_bytes_or_by_path_in_any_kind_of_columns(classifier, pictures):
    predictor = BatchPredictor(str(classifier))
    paths = [str(path) for path in sorted(pictures.iterdir())[15:19]]
    contents = [Path(path).read_bytes() for path in paths]
    by_path = predictor({"path": np.array(paths)})
    texts, blobs = np.array(paths, object), np.array(contents, object)
    tables = {
        "both": {"path": texts, "bytes": blobs},
        "some of each": {"path": paths, "bytes": [contents[0], None, None, contents[3]]},
        "url": {"path": [f"file://{path}" for path in paths]},
        "arrow": pyarrow.table({"path": paths, "bytes": contents}),
        "record batch": pyarrow.RecordBatch.from_pydict({"path": paths}),
    }
    tables["pandas"] = tables["arrow"].to_pandas()
    for what, table in tables.items():
        rows = predictor(table)
        assert rows.drop(["path", "error"]) == by_path.drop(["path", "error"]), what
        assert [bool(error) for error in rows["error"].to_pylist()] == [0, 0, 1, 0]
    assert rows["path"].to_pylist() == paths
    nameless = predictor({"bytes": contents})
    assert nameless["path"].to_pylist() == [None] * 4
    assert nameless["class"] == by_path["class"]
    assert "image without a path cannot be read" in nameless["error"][2].as_py()


def test_other_columns_pass_through_and_an_empty_batch_has_all_columns(classifier, pictures):
    predictor = BatchPredictor(str(classifier))
    path = str(pictures / "00.png")
    rows = predictor({"id": np.array([7, 8]), "bytes": [None, None], "path": [path, None]})
    assert rows.column_names == [*predictor.schema.names, "id"]
    assert rows["id"].to_pylist() == [7, 8]
    good, bad = rows["error"].to_pylist()
    assert good is None
    assert "neither path nor bytes" in bad
    assert predictor({"path": []}).schema == predictor.schema


@pytest.mark.parametrize("columns", [["image"], ["path", "class"]])
def test_a_batch_without_images_or_with_columns_of_predictions_is_refused(columns, classifier):
    batch = {column: ["a.png"] for column in columns}
    with refused(ConfigError, f"has the columns {', '.join(columns)}, expected path or bytes"):
        BatchPredictor(str(classifier))(batch)


@pytest.mark.parametrize("name", ["top_k", "batch_size"])
def test_a_number_below_one_is_refused(name, classifier):
    with refused(ConfigError, f"{name} is 0"):
        BatchPredictor(str(classifier), **{name: 0})


def test_it_travels_without_weights_and_loads_where_it_arrives(classifier, tmp_path):
    predictor = BatchPredictor(str(classifier))
    noise(20, 30).save(tmp_path / "a.png")
    before = predictor({"path": [str(tmp_path / "a.png")]})
    sent = pickle.dumps(predictor)
    assert len(sent) < 1000
    assert pickle.loads(sent)({"path": [str(tmp_path / "a.png")]}) == before  # noqa: S301


def test_a_rule_and_a_precision_are_those_of_the_classifier(classifier, pictures):
    images = [str(path) for path in sorted(pictures.iterdir()) if path.stem not in ("17", "40")]
    options = {"precision": "bf16-mixed", "rule": DecisionRule(threshold=0.4), "top_k": 2}
    predictions = Classifier.load(classifier).predict(images, **options)
    rows = BatchPredictor(str(classifier), **options)({"path": images})
    assert rows["class"].to_pylist() == [top.class_name for top, *_ in predictions]
    assert None in rows["class"].to_pylist()
    probabilities = [top.probability for top, *_ in predictions]
    np.testing.assert_allclose(rows["probability"], probabilities, atol=4e-3)
