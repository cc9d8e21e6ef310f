import json
import shutil
from dataclasses import replace
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
import world
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from test_classifier import make_classifier

import kdpl.classifier.hub
from kdpl import Classifier
from kdpl.classifier.companion import companion_kinds
from kdpl.classifier.hub import from_pretrained, model_card, push_to_hub, save_pretrained
from kdpl.errors import ArtifactError
from kdpl.runtime.predictions import write_results


@pytest.fixture(scope="module")
def classifier(clip_of):
    return make_classifier(clip_of("test-student"))


@pytest.fixture
def run(tmp_path):
    """Config and accuracies of a student's run."""
    folder = tmp_path / "run"
    folder.mkdir()
    data = {"dataset": "dtd", "protocol": "base_to_novel", "shots": 16, "root": "/secret/place"}
    config = {"seed_everything": 3, "data": {"init_args": data}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    accuracies = {"acc": 0.5, "base_acc": 0.625, "novel_acc": 0.25, "hm": 0.35714}
    write_results(folder, 11, {f"test/{name}": value for name, value in accuracies.items()})
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in place of the hub."""
    root = tmp_path / "hub"

    class Api:
        def __init__(self, token):
            self.token = token

        def create_repo(self, repo_id, private, exist_ok):
            (root / repo_id).mkdir(parents=True)
            (root / repo_id / "asked.json").write_text(json.dumps([private, exist_ok, self.token]))
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, repo_id, folder_path, **_):
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return f"https://huggingface.co/{repo_id}/commit/1"

    def snapshot(repo_id, allow_patterns, **options):
        files = {"classifier.json", "model.safetensors"}
        assert {*allow_patterns} == files.union(kind.file for kind in companion_kinds().values())
        validate_repo_id(repo_id)
        if not (root / repo_id).is_dir():
            raise LocalEntryNotFoundError(f"{repo_id} is not there.")
        return str(root / repo_id)

    monkeypatch.setattr(kdpl.classifier.hub, "HfApi", Api)
    monkeypatch.setattr(kdpl.classifier.hub, "snapshot_download", snapshot)
    return root


def test_an_uploaded_classifier_is_downloaded_unchanged(classifier, run, hub, images):
    url = push_to_hub(classifier, "me/digits", run=run, private=True, token="secret")  # noqa: S106
    assert url == "https://huggingface.co/me/digits/commit/1"
    pushed = hub / "me" / "digits"
    assert json.loads((pushed / "asked.json").read_text()) == [True, True, "secret"]
    names = {path.name for path in pushed.iterdir()}
    files = {"README.md", "classifier.json", "config.json", "model.safetensors"}
    assert names == {"asked.json", *files}
    assert json.loads((pushed / "config.json").read_text()) == {"library_name": "kdpl"}
    read = from_pretrained("me/digits")
    assert torch.equal(read(images), classifier(images))
    assert read.class_names == classifier.class_names
    assert torch.equal(from_pretrained(pushed)(images), classifier(images))


def test_the_card_states_data_protocol_accuracies_teacher_and_licence(classifier, run, tmp_path):
    saved, clip = tmp_path / "saved", replace(classifier.clip, pretrained="/somebody/weights.pt")
    save_pretrained(Classifier(classifier.encoder, classifier.vectors, 17.0, clip), saved, run=run)
    assert {path.suffix for path in saved.iterdir()} == {".json", ".md", ".safetensors"}
    card = ModelCard.load(saved / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("kdpl", "image-classification")
    for words in (
        "# Image classifier of 5 classes\n\n## Classes\n\n`sea_horse`, `crab`",
        "\n\n- dataset `dtd`, protocol `base_to_novel`, seed 3\n- labels for tuning the teacher: 16 images per class",
        "On 11 test images",
        "|---|--:|\n| all classes | 50.0% |\n| base classes | 62.5% |\n",
        "\n| harmonic mean | 35.7% |\n\n##",
        "- image encoder: CLIP `test-student`, weights `weights.pt`, images of 32 pixels\n- class vectors",
        "CLIP `test-teacher-quickgelu`: both remain under the licence of their publishers",
    ):
        assert words in card.text, words
    assert "/secret" not in card.content
    assert "/somebody" not in card.content
    assert torch.equal(Classifier.load(saved).vectors.vectors, classifier.vectors.vectors)


def test_the_card_says_which_labels_were_seen_and_what_was_not_recorded(classifier, run):
    file = run / "config.yaml"
    config = yaml.safe_load(file.read_text())
    for shots, words in (
        (0, "none\n"),
        (4, "4 images per class of the first half"),
        (None, "all images"),
    ):
        config["data"]["init_args"]["shots"] = shots
        file.write_text(yaml.safe_dump(config))
        assert f"labels for tuning the teacher: {words}" in model_card(classifier, run).text
    (run / "test.json").unlink()
    assert "Not measured." in model_card(classifier, run).text
    assert "Not recorded." in model_card(classifier).text


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.yaml", "data: 3"), ("test.json", "{"), ("test.json", '{"images": []}')],
)
def test_a_damaged_run_is_named(name, content, classifier, run, tmp_path):
    (run / name).write_text(content)
    with world.refused(ArtifactError, str(run)):
        save_pretrained(classifier, tmp_path / "saved", run=run)


@pytest.mark.parametrize("name", ["me/gone", "no such folder/a/b"])
def test_a_classifier_that_is_not_on_the_hub_is_one_sentence(name, hub):
    with world.refused(ArtifactError, f"{name} cannot be downloaded from the hub"):
        from_pretrained(name)


def test_an_unreachable_hub_is_one_sentence(classifier, hub, monkeypatch):
    unreachable = Mock(side_effect=ConnectionError("no route to host"))
    monkeypatch.setattr(kdpl.classifier.hub.HfApi, "upload_folder", unreachable)
    with world.refused(ArtifactError, r"me/digits \(no route to host\)"):
        push_to_hub(classifier, "me/digits")
