"""The model card of a classifier: the README.md of its folder, which the Hugging Face hub shows."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Template

from kdpl import __version__
from kdpl.errors import ConfigError
from kdpl.metrics import ACCURACY_TITLES, MULTILABEL_COLUMNS, test_key
from kdpl.runtime.configs import read_config
from kdpl.runtime.files import read_text, write_text
from kdpl.runtime.predictions import read_results
from kdpl.runtime.run_folder import CARD_FILE, CLASSIFIER_FOLDER, CONFIG_FILE

_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.jinja"
_ACCURACY = re.compile(r"(?<=^## Accuracy\n\n).*?(?=\n\n## )", re.MULTILINE | re.DOTALL)


def model_card(facts: Mapping[str, Any], run: Path | None = None) -> str:
    """Return the card of a classifier, by ``card_facts``, with the data of its ``run`` if known."""
    template = Template(_TEMPLATE.read_text(encoding="utf-8"), keep_trailing_newline=True)
    data = None if run is None else _data(run)
    text: str = template.render(version=__version__, data=data, **facts)
    return text


def state_accuracies(run: Path) -> None:
    """Write the accuracies of a student's test into the card of its classifier, if there is one."""
    card, results = run / CLASSIFIER_FOLDER / CARD_FILE, read_results(run)
    titles = {test_key(key): t for key, t in {**ACCURACY_TITLES, **MULTILABEL_COLUMNS}.items()}
    rows = [f"| {title} | {results[key]:.1%} |" for key, title in titles.items() if key in results]
    if not rows or not card.is_file():
        return
    number = f"On {results['images']} test images"
    if any(row.startswith("| base") for row in rows):
        number += "; base and novel images are classified among their own classes"
    section = "\n".join([f"{number}:", "", "| | accuracy |", "|---|--:|", *rows])
    write_text(card, _ACCURACY.sub(lambda _: section, read_text(card, "model card"), count=1))


def _data(run: Path) -> dict[str, Any] | None:
    """Return dataset, protocol, labels and seed of a run; None without a config that has them."""
    try:
        config = read_config(str(run / CONFIG_FILE))
        settings = config["data"]["init_args"]
        data = {key: settings[key] for key in ("dataset", "protocol", "shots")}
        # settings of a reader may name private folders
        if isinstance(data["dataset"], dict):
            data["dataset"] = data["dataset"]["class_path"]
        return {**data, "seed": config["seed_everything"]}
    except (ConfigError, KeyError, TypeError):
        return None
