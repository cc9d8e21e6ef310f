"""The model card of a classifier: what its README.md states before and after a test."""

from dataclasses import replace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from test_classifier import make_classifier

from kdpl import Classifier
from kdpl.classifier.card import model_card, state_accuracies
from kdpl.runtime.predictions import write_results


@pytest.fixture(scope="module")
def classifier(clip_of):
    return make_classifier(clip_of("test-student"))


@pytest.fixture
def run(tmp_path):
    """The config of a student's run."""
    folder = tmp_path / "run"
    folder.mkdir()
    data = {"dataset": "dtd", "protocol": "base_to_novel", "shots": 16, "root": "/secret/place"}
    config = {"seed_everything": 3, "data": {"init_args": data}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_the_card_states_data_protocol_accuracies_teacher_and_licence(classifier, run):
    saved, clip = run / "classifier", replace(classifier.clip, pretrained="/somebody/weights.pt")
    Classifier(classifier.encoder, classifier.vectors, 17.0, clip).save(saved, run=run)
    assert {path.suffix for path in saved.iterdir()} == {".json", ".md", ".safetensors"}
    card = ModelCard.load(saved / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("kdpl", "image-classification")
    for words in (
        "# Image classifier of 5 classes\n\n## Classes\n\n`sea_horse`, `crab`",
        "\n\n- dataset `dtd`, protocol `base_to_novel`, seed 3\n- labels for tuning the teacher: 16 images per class",
        "\n\n## Accuracy\n\nNot measured.\n\n## How",
        "- image encoder: CLIP `test-student`, weights `weights.pt`, images of 32 pixels\n- class vectors",
        "CLIP `test-teacher-quickgelu`: both remain under the licence of their publishers",
    ):
        assert words in card.text, words
    assert "/secret" not in card.content
    assert "/somebody" not in card.content
    assert torch.equal(Classifier.load(saved).vectors.vectors, classifier.vectors.vectors)

    # each test replaces what the last one measured, and nothing else
    before = (saved / "README.md").read_text(encoding="utf-8")
    for accuracy, shown in ((0.5, "50.0%"), (0.75, "75.0%")):
        accuracies = {"acc": accuracy, "base_acc": 0.625, "novel_acc": 0.25, "hm": 0.35714}
        write_results(run, 11, {f"test/{name}": value for name, value in accuracies.items()})
        state_accuracies(run)
        measured = (
            "On 11 test images; base and novel images are classified among their own classes:\n\n"
            f"| | accuracy |\n|---|--:|\n| all classes | {shown} |\n| base classes | 62.5% |\n"
            "| novel classes | 25.0% |\n| harmonic mean | 35.7% |"
        )
        after = (saved / "README.md").read_text(encoding="utf-8")
        assert after == before.replace("Not measured.", measured)


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
        assert f"labels for tuning the teacher: {words}" in model_card(classifier.card_facts(), run)
    reader = {"class_path": "mine.Reader", "init_args": {"root": "/secret/place"}}
    config["data"]["init_args"]["dataset"] = reader
    file.write_text(yaml.safe_dump(config))
    assert "- dataset `mine.Reader`, protocol" in model_card(classifier.card_facts(), run)
    assert "Not recorded." in model_card(classifier.card_facts())
    for content in ("data: 3", "- a", "{"):
        file.write_text(content)
        assert "Not recorded." in model_card(classifier.card_facts(), run)


def test_a_run_ends_with_the_card_of_its_classifier(student_run):
    card = (student_run / "classifier" / "README.md").read_text(encoding="utf-8")
    assert "- dataset `digits`, protocol `" in card
