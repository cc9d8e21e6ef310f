"""A classifier and its model card on the Hugging Face hub; nothing is unpickled."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from kdpl import __version__
from kdpl.classifier import Classifier
from kdpl.classifier.companion import companion_kinds
from kdpl.errors import ArtifactError, ConfigError, reason
from kdpl.metrics import ACCURACY_TITLES, test_key
from kdpl.runtime.configs import read_config
from kdpl.runtime.predictions import read_results
from kdpl.runtime.run_folder import CLASSIFIER_FILES, CONFIG_FILE, RESULTS_FILE

_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.jinja"


def push_to_hub(
    classifier: Classifier,
    repo_id: str,
    run: str | Path | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload a classifier and its model card to the Hugging Face hub.

    Args:
        classifier: The classifier.
        repo_id: ``owner/name``; created if it does not exist.
        run: Folder of the student's run, for the card: data, protocol and, where it was tested,
            accuracies.
        private: Make a new repository private; None: the owner's default.
        token: The hub's token; None: the token stored by ``hf auth login``.

    Returns:
        URL of the commit.

    Raises:
        ArtifactError: The hub refuses or cannot be reached, or ``run`` is not a run's folder.
    """
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "classifier"
        save_pretrained(classifier, folder, run)
        # create the repository if needed, and upload in one commit
        try:
            api = HfApi(token=token)
            name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            url = api.upload_folder(
                repo_id=name, folder_path=folder, commit_message="Upload classifier"
            )
        except (HfHubHTTPError, HFValidationError, ConnectionError) as error:
            raise ArtifactError(
                f"the classifier cannot be uploaded to {repo_id} ({reason(error)}): check name, "
                "token and network"
            ) from error
    return str(url)


def save_pretrained(
    classifier: Classifier, folder: str | Path, run: str | Path | None = None
) -> None:
    """Write the files of ``push_to_hub``: the classifier and its model card, README.md."""
    card = model_card(classifier, run)
    classifier.save(folder)
    card.save(Path(folder) / "README.md")
    # the hub counts downloads by this file and reads the library name from it
    (Path(folder) / "config.json").write_text('{"library_name": "kdpl"}')


def from_pretrained(
    name: str | Path,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
) -> Classifier:
    """Read a classifier from the Hugging Face hub, or from a folder.

    Args:
        name: ``owner/name`` on the hub, or a folder.
        revision: A commit, branch or tag on the hub.
        token: As in ``push_to_hub``.
        cache_dir: Folder for downloads; None: the hub's default.

    Raises:
        ArtifactError: It cannot be fetched, or is damaged.
    """
    if Path(name).is_dir():
        return Classifier.load(name)

    # only files of classifiers
    files = [*CLASSIFIER_FILES, *(kind.file for kind in companion_kinds().values())]
    try:
        folder = snapshot_download(
            str(name), allow_patterns=files, revision=revision, token=token, cache_dir=cache_dir
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        names = " and ".join(CLASSIFIER_FILES)
        raise ArtifactError(
            f"the classifier {name} cannot be downloaded from the hub ({reason(error)}): check "
            f"name, token and network, or fetch {names} of {constants.ENDPOINT}/{name} elsewhere "
            "and give their folder"
        ) from error
    return Classifier.load(folder)


def model_card(classifier: Classifier, run: str | Path | None = None) -> ModelCard:
    """Return a model card; of a ``run``, with its data and accuracies, or an ArtifactError."""
    tags = ["clip", "knowledge-distillation", "prompt-learning", "promptkd"]
    card: ModelCard = ModelCard.from_template(
        ModelCardData(library_name="kdpl", pipeline_tag="image-classification", tags=tags),
        template_path=str(_TEMPLATE),
        version=__version__,
        **(_of_run(Path(run)) if run is not None else {}),
        **classifier.card_facts(),
    )
    return card


def _of_run(run: Path) -> dict[str, Any]:
    try:
        config, results = read_config(str(run / CONFIG_FILE)), read_results(run)
        # settings of the data, and accuracies in percent
        settings = config["data"]["init_args"]
        data = {key: settings[key] for key in ("dataset", "protocol", "shots")}
        keys = {test_key(key): title for key, title in ACCURACY_TITLES.items()}
        texts = {title: f"{results[key]:.1%}" for key, title in keys.items() if key in results}
        accuracy = (int(results["images"]), texts) if results else None
        return {"data": data, "seed": config["seed_everything"], "accuracy": accuracy}
    except (ConfigError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{CONFIG_FILE} or {RESULTS_FILE} in {run} is missing or damaged ({reason(error)}): "
            "give the folder of a student's run, or test the student again"
        ) from error
