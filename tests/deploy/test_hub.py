import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
import world
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from test_classifier import make_classifier

import kdpl.deploy.hub
from kdpl import Classifier
from kdpl.deploy.model_card import model_card
from kdpl.errors import ArtifactError


@pytest.fixture(scope="module")
def classifier(clip_of):
    return make_classifier(clip_of("test-student"))


@pytest.fixture
def run(tmp_path):
    """A student's run: its settings and accuracies."""
    folder = tmp_path / "run"
    folder.mkdir()
    data = {"dataset": "dtd", "protocol": "base_to_novel", "shots": 16, "root": "/secret/place"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 3, "data": {"init_args": data}}))
    results = {"images": 11, "test/acc": 0.5, "test/base_acc": 0.625, "test/novel_acc": 0.25, "test/hm": 0.35714}
    (folder / "test.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that is a folder."""
    root = tmp_path / "hub"

    class Api:
        def __init__(self, token=None, **_):
            self.token = token

        def create_repo(self, repo_id, private=None, exist_ok=False, **_):
            (root / repo_id).mkdir(parents=True)
            (root / repo_id / "asked.json").write_text(json.dumps([private, exist_ok, self.token]))
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, repo_id, folder_path, **_):
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return f"https://huggingface.co/{repo_id}/commit/1"

    def get(repo_id, filename, **_):
        if not (root / repo_id / filename).is_file():
            raise LocalEntryNotFoundError(f"{repo_id} is not there.")
        return str(root / repo_id / filename)

    def snapshot(repo_id, allow_patterns, **options):
        assert set(allow_patterns) == {"classifier.json", "model.safetensors"}
        return str(root / repo_id)

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", get)
    monkeypatch.setattr(kdpl.deploy.hub, "snapshot_download", snapshot)
    return root


def test_what_is_pushed_is_had_again(classifier, run, hub, images):
    url = classifier.push_to_hub("me/digits", run=run, private=True, token="secret")  # noqa: S106
    assert url == "https://huggingface.co/me/digits/commit/1"
    pushed = hub / "me" / "digits"
    assert json.loads((pushed / "asked.json").read_text()) == [True, True, "secret"]
    names = sorted(path.name for path in pushed.iterdir())
    assert names == ["README.md", "asked.json", "classifier.json", "config.json", "model.safetensors"]
    assert json.loads((pushed / "config.json").read_text()) == {"library_name": "kdpl"}
    read = Classifier.from_pretrained("me/digits")
    assert torch.equal(read(images), classifier(images))
    assert read.class_names == classifier.class_names
    assert torch.equal(Classifier.from_pretrained(pushed)(images), classifier(images))


def test_the_card_states_data_protocol_accuracies_teacher_and_licence(classifier, run, tmp_path):
    classifier.save_pretrained(tmp_path / "saved", run=run)
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("kdpl", "image-classification")
    for words in (
        "# Image classifier of 5 classes",
        "`sea_horse`, `crab`",
        "first 3 are base classes",
        "dataset `dtd`, protocol `base_to_novel`, seed 3",
        "tuned on: 16 images of each class of the first half",
        "On 11 test images",
        "| all classes | 50.0% |",
        "| base classes, among themselves | 62.5% |",
        "| harmonic mean of base and novel | 35.7% |",
        "CLIP `test-student`, weights `noise`, images of 32 pixels",
        "CLIP `test-teacher-quickgelu`",
        "licence of those who published them",
    ):
        assert words in card.text, words
    assert "/secret" not in card.content
    assert torch.equal(Classifier.load(tmp_path / "saved").vectors.vectors, classifier.vectors.vectors)


def test_the_card_does_not_say_where_a_weights_file_lay(classifier, tmp_path):
    clip = replace(classifier.clip, pretrained="/somebody/weights.pt")
    card = model_card(Classifier(classifier.encoder, classifier.vectors, 17.0, clip), None)
    assert "weights `weights.pt`" in card.text
    assert "/somebody" not in card.content


def test_what_is_not_known_is_said_to_be_so(classifier, run, tmp_path):
    classifier.save_pretrained(tmp_path / "a")
    assert "Not recorded." in (tmp_path / "a" / "README.md").read_text()
    (run / "test.json").unlink()
    classifier.save_pretrained(str(tmp_path / "b"), run=str(run))
    text = (tmp_path / "b" / "README.md").read_text()
    assert "Not measured." in text
    assert "dataset `dtd`" in text


@pytest.mark.parametrize(("name", "content"), [("config.yaml", "data: 3"), ("config.yaml", ": ["), ("test.json", "{")])
def test_a_damaged_run_is_named(name, content, classifier, run, tmp_path):
    (run / name).write_text(content)
    with pytest.raises(ArtifactError, match=str(run)) as error:
        classifier.save_pretrained(tmp_path / "saved", run=run)
    assert world.one_sentence(error)


def test_a_run_of_a_real_student_gives_a_card(student_run, tmp_path):
    classifier = Classifier.load(student_run / "classifier")
    classifier.save_pretrained(tmp_path / "saved", run=student_run)
    text = (tmp_path / "saved" / "README.md").read_text()
    assert "dataset `digits`, protocol `all`, seed 1" in text
    assert "On 899 test images" in text


def test_what_the_hub_does_not_have_is_one_sentence(hub):
    with pytest.raises(ArtifactError, match="me/gone cannot be had from the hub") as error:
        Classifier.from_pretrained("me/gone")
    assert world.one_sentence(error)
    with pytest.raises(ArtifactError, match="cannot be had from the hub") as error:
        Classifier.from_pretrained("no such folder/a/b")
    assert world.one_sentence(error)


def test_a_hub_that_cannot_be_reached_is_one_sentence(classifier, hub, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.hub_mixin.HfApi, "upload_folder", unreachable)
    with pytest.raises(ArtifactError, match=r"me/digits \(no route to host\): check") as error:
        classifier.push_to_hub("me/digits")
    assert world.one_sentence(error)


def test_nothing_pickled_is_written(classifier, tmp_path):
    classifier.save_pretrained(tmp_path / "saved")
    assert {path.suffix for path in Path(tmp_path / "saved").iterdir()} == {".json", ".md", ".safetensors"}
