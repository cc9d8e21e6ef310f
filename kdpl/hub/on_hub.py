"""The methods by which a classifier is on the Hugging Face hub."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kdpl.runtime.run_folder import CLASSIFIER_FILES, HELD_OUT_FILE, UNKNOWN_FILE

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

HUB_FILES = ("README.md", "config.json")
"""Files that ``save_pretrained`` writes beside those of the classifier."""


class OnHub(ABC):
    """Uploads, downloads and describes what is saved in a folder and loaded from there."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write the folder."""

    @classmethod
    @abstractmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the folder."""

    @abstractmethod
    def card_facts(self) -> dict[str, Any]:
        """What the model card says, see ``kdpl.hub.hub.model_card``."""

    def save_pretrained(self, folder: str | Path, run: str | Path | None = None) -> None:
        """Write what ``push_to_hub`` uploads: the classifier and its model card, README.md; ``load`` reads it too."""
        card = self.model_card(run)
        self.save(folder)
        card.save(Path(folder) / "README.md")
        # the hub counts downloads by this file, and takes the library's name from it
        (Path(folder) / "config.json").write_text('{"library_name": "kdpl"}')

    def model_card(self, run: str | Path | None = None) -> "ModelCard":
        """Return the model card; with the folder of the student's run also data, protocol and accuracies."""
        # the hub's client takes a second to import
        from kdpl.hub.hub import model_card

        return model_card(Path(run) if run is not None else None, **self.card_facts())

    def push_to_hub(
        self, repo_id: str, run: str | Path | None = None, private: bool | None = None, token: str | None = None
    ) -> str:
        """Upload the classifier and its model card to the Hugging Face hub.

        Args:
            repo_id: ``owner/name``; created if it does not exist.
            run: Folder of the student's run, for the card: data, protocol and, where it was tested, accuracies.
            private: If a repository that is created is private; None: the owner's default.
            token: The hub's token; None: the one that ``hf auth login`` stored.

        Returns:
            URL of the commit.

        Raises:
            ArtifactError: The hub refuses or cannot be reached, or ``run`` is not a run's folder.
        """
        from kdpl.hub.hub import push_to_hub

        return push_to_hub(repo_id, lambda folder: self.save_pretrained(folder, run), private, token)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, revision: str | None = None, token: str | None = None, cache_dir: str | None = None
    ) -> Self:
        """Read a classifier from the Hugging Face hub, or from a folder.

        Args:
            name: ``owner/name`` on the hub, or a folder.
            revision: A commit, branch or tag on the hub.
            token: As in ``push_to_hub``.
            cache_dir: Folder for downloads; None: the hub's own.

        Raises:
            ArtifactError: It cannot be fetched, or is damaged.
        """
        if Path(name).is_dir():
            return cls.load(name)
        from kdpl.hub.hub import download

        files = (*CLASSIFIER_FILES, HELD_OUT_FILE, UNKNOWN_FILE)
        return cls.load(download(str(name), files, revision=revision, token=token, cache_dir=cache_dir))
