"""A classifier and its model card on the Hugging Face hub: safetensors, JSON and Markdown, nothing unpickled."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from kdpl import __version__
from kdpl.errors import ArtifactError, ConfigError, reason
from kdpl.metrics import ACCURACY_TITLES, test_key
from kdpl.runtime.configs import read_config
from kdpl.runtime.network import HubUnreachableError, hub_or_cache
from kdpl.runtime.predictions import read_results
from kdpl.runtime.run_folder import CONFIG_FILE, RESULTS_FILE

_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.jinja"


def push_to_hub(repo_id: str, save: Callable[[Path], None], private: bool | None, token: str | None) -> str:
    """Upload the folder that ``save`` writes; see ``Classifier.push_to_hub``."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "classifier"
        save(folder)
        try:
            api = HfApi(token=token)
            name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload classifier"))
        except (HfHubHTTPError, HFValidationError, ConnectionError) as error:
            raise ArtifactError(
                f"the classifier cannot be uploaded to {repo_id} ({reason(error)}): check name, token and network"
            ) from error


def download(name: str, files: Sequence[str], **options: Any) -> Path:
    """Download some files of a repository; returns their folder. See ``Classifier.from_pretrained``."""
    try:
        with hub_or_cache():
            return Path(snapshot_download(name, allow_patterns=list(files), **options))
    except (HubUnreachableError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ArtifactError(
            f"the classifier {name} cannot be downloaded from the hub ({reason(error)}): check name, token and "
            f"network, or fetch {' and '.join(files)} of {constants.ENDPOINT}/{name} elsewhere and give their folder"
        ) from error


def model_card(run: Path | None, **facts: Any) -> ModelCard:
    """Write a classifier's model card; an ArtifactError if the run's config or accuracies are damaged.

    Args:
        run: Folder of the student's run, for data, protocol and accuracies; None: the card says "not recorded".
        facts: What the template says of the classifier: ``names`` of its classes, ``num_base``, ``context``,
            ``image_size``, and ``student`` and ``teacher`` with the names of ``model`` and ``weights``.
    """
    tags = ["clip", "knowledge-distillation", "prompt-learning", "promptkd"]
    card: ModelCard = ModelCard.from_template(
        ModelCardData(library_name="kdpl", pipeline_tag="image-classification", tags=tags),
        template_path=str(_TEMPLATE),
        version=__version__,
        **(_of_run(run) if run is not None else {"data": None, "seed": None, "accuracy": None}),
        **facts,
    )
    return card


def _of_run(run: Path) -> dict[str, Any]:
    """Return data, seed and, if the student was tested, number of test images and accuracies as text."""
    try:
        config, results = read_config(str(run / CONFIG_FILE)), read_results(run)
        settings = config["data"]["init_args"]
        data = {key: settings[key] for key in ("dataset", "protocol", "shots")}
        data["student_sees_labels"] = bool(config.get("model", {}).get("init_args", {}).get("label_weight"))
        keys = {test_key(key): title for key, title in ACCURACY_TITLES.items()}
        texts = {title: f"{results[key]:.1%}" for key, title in keys.items() if key in results}
        accuracy = (int(results["images"]), texts) if results else None
        return {"data": data, "seed": config["seed_everything"], "accuracy": accuracy}
    except (ConfigError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{CONFIG_FILE} or {RESULTS_FILE} in {run} is missing or damaged ({reason(error)}): give the folder of a "
            "student's run, or test the student again"
        ) from error
