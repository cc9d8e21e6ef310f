"""The result of a campaign's run for the table: one ``results.json`` with its coordinates."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from kdpl.errors import ArtifactError
from kdpl.runtime.files import write_text

RUN_FILE = "results.json"


class Result(BaseModel):
    """A run's coordinates, as ``kdpl.benchmark.tasks.Run`` has them, and its accuracies.

    Attributes:
        metrics: Accuracies as fractions, by metric name.
        images: Number of test images.
        transductive: Unlabelled images of novel classes were seen in training.
        selected_on_test: The epoch was chosen by its accuracy on the base classes' test images.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    protocol: str
    setting: str
    dataset: str
    seed: int
    row: str
    title: str
    metrics: dict[str, float]
    images: int
    transductive: bool
    selected_on_test: bool

    def save(self, folder: Path) -> None:
        """Write into a run's folder, atomically."""
        write_text(folder / RUN_FILE, self.model_dump_json(indent=2))


def read_all(out: Path) -> Iterator[Result]:
    """Read the results of all finished runs below a campaign's folder.

    Raises:
        ArtifactError: A file is not the result of a campaign's run.
    """
    for file in sorted(out.glob(f"*/**/{RUN_FILE}")):
        try:
            yield Result.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise ArtifactError(
                f"{file} is not the result of a campaign's run: remove it and start the benchmark again"
            ) from error
