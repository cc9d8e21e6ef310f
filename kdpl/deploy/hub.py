"""A classifier and its model card on the Hugging Face hub: safetensors, JSON and Markdown, nothing unpickled."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from kdpl import __version__
from kdpl.classifier import FILES, Classifier
from kdpl.clip import ClipIdentity
from kdpl.errors import ArtifactError, ConfigError, reason
from kdpl.metrics import ACCURACY_TITLES, test_key
from kdpl.runtime.configs import read_config
from kdpl.runtime.network import HubUnreachableError, hub_or_cache
from kdpl.runtime.predictions import read_results
from kdpl.runtime.run_folder import CONFIG_FILE, RESULTS_FILE

# the hub counts downloads by config.json, and takes the library's name from it
_CONFIG = {"library_name": "kdpl"}
_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.jinja"


class _OnHub(ModelHubMixin):
    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    def _save_pretrained(self, save_directory: Path) -> None:
        self.classifier.save(save_directory)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:  # noqa: ANN401, ARG002
        return model_card(self.classifier, kwargs["run"])

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Classifier:  # type: ignore[override]  # noqa: ANN401
        return Classifier.load(snapshot_download(model_id, allow_patterns=list(FILES), **options))


def save_pretrained(classifier: Classifier, folder: Path, run: Path | None) -> None:
    """Write the classifier's files, ``config.json`` and the model card ``README.md`` into a folder."""
    _OnHub(classifier).save_pretrained(folder, config=_CONFIG, model_card_kwargs={"run": run})


def push_to_hub(classifier: Classifier, repo_id: str, run: Path | None, **options: Any) -> str:  # noqa: ANN401
    """Upload a classifier; see ``Classifier.push_to_hub``."""
    try:
        url: str = _OnHub(classifier).push_to_hub(
            repo_id, config=_CONFIG, model_card_kwargs={"run": run}, commit_message="Upload classifier", **options
        )
    except (HfHubHTTPError, HFValidationError, ConnectionError) as error:
        raise ArtifactError(
            f"the classifier cannot be uploaded to {repo_id} ({reason(error)}): check name, token and network"
        ) from error
    return url


def from_pretrained(name: str, **options: Any) -> Classifier:  # noqa: ANN401
    """Download a classifier; see ``Classifier.from_pretrained``."""
    try:
        with hub_or_cache():
            classifier: Any = _OnHub.from_pretrained(name, **options)
    except (HubUnreachableError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ArtifactError(
            f"the classifier {name} cannot be downloaded from the hub ({reason(error)}): check name, token and "
            "network, or give a folder"
        ) from error
    return cast(Classifier, classifier)


def model_card(classifier: Classifier, run: Path | None) -> ModelCard:
    """Write a classifier's model card, with data, protocol and accuracies from the folder of the student's run.

    Raises:
        ArtifactError: The run's config cannot be read, or its accuracies are damaged.
    """
    data, seed = _data(run) if run is not None else (None, None)
    card: ModelCard = ModelCard.from_template(
        ModelCardData(
            library_name="kdpl",
            pipeline_tag="image-classification",
            tags=["clip", "knowledge-distillation", "prompt-learning", "promptkd"],
        ),
        template_path=str(_TEMPLATE),
        names=classifier.class_names,
        num_base=classifier.vectors.num_base,
        data=data,
        seed=seed,
        accuracy=_accuracy(run) if run is not None else None,
        student=_names(classifier.clip),
        teacher=_names(classifier.vectors.clip),
        context=classifier.vectors.context,
        image_size=classifier.preprocessing.image_size,
        version=__version__,
    )
    return card


def _names(clip: ClipIdentity) -> dict[str, str]:
    # only the name of a weights file: its folder is private
    return {"model": clip.model, "weights": Path(clip.pretrained).name}


def _data(run: Path) -> tuple[Mapping[str, Any], int]:
    try:
        config = read_config(str(run / CONFIG_FILE))
        settings = config["data"]["init_args"]
        return {key: settings[key] for key in ("dataset", "protocol", "shots")}, config["seed_everything"]
    except (ConfigError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{run} is not the folder of a student's run, because its {CONFIG_FILE} cannot be read ({reason(error)}): "
            "give one"
        ) from error


def _accuracy(run: Path) -> tuple[int, dict[str, str]] | None:
    """Return the number of test images and the accuracies as text; None if the student was not tested."""
    try:
        results = read_results(run)
        keys = {test_key(key): title for key, title in ACCURACY_TITLES.items()}
        texts = {title: f"{results[key]:.1%}" for key, title in keys.items() if key in results}
        return (int(results["images"]), texts) if results else None
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{run / RESULTS_FILE} is damaged ({reason(error)}): test the student again") from error
