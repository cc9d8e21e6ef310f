"""A classifier on the Hugging Face hub: safetensors, JSON and a model card; nothing that is unpickled."""

from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from kdpl.classifier import FILES, Classifier
from kdpl.deploy.model_card import model_card
from kdpl.errors import ArtifactError, reason
from kdpl.runtime.network import HubUnreachableError, hub_or_cache

# the hub counts a model's downloads by this file, and takes the library's name from it
_CONFIG = {"library_name": "kdpl"}


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
    """Write what is pushed to a folder: the classifier's files, ``config.json`` and the model card ``README.md``."""
    _OnHub(classifier).save_pretrained(folder, config=_CONFIG, model_card_kwargs={"run": run})


def push_to_hub(classifier: Classifier, repo_id: str, run: Path | None, **options: Any) -> str:  # noqa: ANN401
    """Upload a classifier; see ``Classifier.push_to_hub``."""
    try:
        url: str = _OnHub(classifier).push_to_hub(
            repo_id, config=_CONFIG, model_card_kwargs={"run": run}, commit_message="Upload classifier", **options
        )
    except (HfHubHTTPError, HFValidationError, ConnectionError) as error:
        raise ArtifactError(
            f"the classifier cannot be uploaded to {repo_id} ({reason(error)}): check the name, your token and the "
            "network"
        ) from error
    return url


def from_pretrained(name: str, **options: Any) -> Classifier:  # noqa: ANN401
    """Download a classifier; see ``Classifier.from_pretrained``."""
    try:
        with hub_or_cache():
            classifier: Any = _OnHub.from_pretrained(name, **options)
    except (HubUnreachableError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ArtifactError(
            f"the classifier {name} cannot be had from the hub ({reason(error)}): check its name, your token and the "
            "network, or give a folder"
        ) from error
    return cast(Classifier, classifier)
