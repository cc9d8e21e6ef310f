"""``make models``: count the parameters of open_clip's image towers, for ``python -m kdpl models``."""

import json
from pathlib import Path

import open_clip

from kdpl.clip import catalogue
from kdpl.clip.loading import count_image_parameters
from kdpl.clip.versions import list_models
from kdpl.runtime.files import write_text

FILE = Path(catalogue.__file__).with_name(catalogue.PARAMETERS_FILE)
_USABLE = {*list_models()}
PAIRS = [pair for pair in open_clip.list_pretrained() if pair[0] in _USABLE]
NAMES = list(dict.fromkeys(name for name, _ in PAIRS))


def main() -> None:
    """Count, which takes minutes, and write the file that the package reads."""
    counted = {name: count_image_parameters(open_clip.get_model_config(name)) for name in NAMES}
    write_text(FILE, json.dumps(counted, indent=1) + "\n")


if __name__ == "__main__":
    main()
