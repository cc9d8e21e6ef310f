"""The model card of a classifier: what it knows, how it was made, how well it does, and whose weights it holds."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from kdpl import __version__
from kdpl.classifier import Classifier
from kdpl.clip.identity import ClipIdentity
from kdpl.errors import ArtifactError, ConfigError, reason
from kdpl.runtime.configs import read_config

_MOST_NAMES = 50  # class names that are listed; all are in classifier.json

_MEASURES = {
    "test/acc": "all classes",
    "test/base_acc": "base classes, among themselves",
    "test/novel_acc": "novel classes, among themselves",
    "test/hm": "harmonic mean of base and novel",
}


def model_card(classifier: Classifier, run: Path | None) -> ModelCard:
    """Write a classifier's card.

    Args:
        classifier: The classifier.
        run: Folder of the student's run: data and protocol come from its ``config.yaml``, accuracies from its
            ``test.json`` where it was tested. None: the card says that they are not known.

    Raises:
        ArtifactError: The run's folder has no readable ``config.yaml``, or its ``test.json`` is damaged.
    """
    data = ModelCardData(
        library_name="kdpl",
        pipeline_tag="image-classification",
        tags=["clip", "knowledge-distillation", "prompt-learning", "promptkd"],
    )
    sections = {
        "Classes": _classes(classifier),
        "Data and protocol": _data(run),
        "Accuracy": _accuracy(run),
        "How it was made": _making(classifier),
        "Use": _USE,
        "Licence": _licence(classifier),
    }
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections.items())
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n# Image classifier of {len(classifier.class_names)} classes\n\n{text}\n"
    )


_USE = """\
```python
from kdpl import Classifier

classifier = Classifier.from_pretrained("NAME")  # of this repository
classifier.predict(["image.jpg"], top_k=3)
```"""


def _classes(classifier: Classifier) -> str:
    names = classifier.class_names
    listed = ", ".join(f"`{name}`" for name in names[:_MOST_NAMES])
    more = f" and {len(names) - _MOST_NAMES} more, in `classifier.json`" if len(names) > _MOST_NAMES else ""
    base = classifier.vectors.num_base
    split = f"\n\nThe first {base} are base classes, which had labels; the others are novel ones." if base else ""
    return f"{listed}{more}.{split}"


def _data(run: Path | None) -> str:
    if run is None:
        return "Not recorded."
    try:
        settings = read_config(str(run / "config.yaml"))
        data: dict[str, Any] = settings["data"]["init_args"]
        shots = "all" if data["shots"] is None else data["shots"]
        rows = [
            f"dataset `{data['dataset']}`, protocol `{data['protocol']}`, seed {settings['seed_everything']}",
            f"labels that the teacher could be tuned on: {shots} images of each class"
            + (" of the first half of the classes" if data["protocol"] == "base_to_novel" else ""),
            "the student saw training images of all classes without any label: for novel classes the setting is "
            "transductive",
        ]
    except (ConfigError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{run} is not the folder of a student's run, as its config.yaml cannot be read ({reason(error)}): give one"
        ) from error
    return "\n".join(f"- {row}" for row in rows)


def _accuracy(run: Path | None) -> str:
    file = run / "test.json" if run is not None else None
    if file is None or not file.is_file():
        return "Not measured."
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        rows = [f"| {title} | {results[key]:.1%} |" for key, title in _MEASURES.items() if key in results]
        return "\n".join([f"On {results['images']} test images:", "", "| | accuracy |", "|---|--:|", *rows])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file} is damaged ({reason(error)}): test the student again") from error


def _making(classifier: Classifier) -> str:
    context = classifier.vectors.context
    return "\n".join(
        [
            f"- image encoder: {_clip(classifier.clip)}, images of {classifier.preprocessing.image_size} pixels",
            f"- class vectors: text features of {_clip(classifier.vectors.clip)}"
            + (f", with prompts that began as “{context}”" if context else ""),
            f"- distilled with kdpl {__version__}, after [PromptKD](https://arxiv.org/abs/2403.02781)",
        ]
    )


def _licence(classifier: Classifier) -> str:
    return (
        f"The image encoder holds the weights of {_clip(classifier.clip)}, and the class vectors were computed with "
        f"{_clip(classifier.vectors.clip)}: both stay under the licence of those who published them, and OpenAI's "
        "model card advises against use without tests of one's own. kdpl itself is under the MIT licence. Whether the "
        "images that it was distilled on restrict its use is for whoever publishes it to say."
    )


def _clip(clip: ClipIdentity) -> str:
    # of a file the name alone: where it lay on somebody's machine is nobody else's business
    return f"CLIP `{clip.model}`, weights `{Path(clip.pretrained).name}`"
