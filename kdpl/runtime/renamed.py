"""Settings by their names before version 0.1; they are refused with the new name."""

import re

SETTINGS = {
    "background": "data.init_args.reading.background",
    "bad_images": "data.init_args.reading.bad_images",
    "class_names": "data.init_args.classes.names",
    "class_text": "data.init_args.classes.text",
    "held_out": "data.init_args.reading.test_share",
    "label_separator": "data.init_args.classes.label_separator",
    "scan": "data.init_args.reading.scan",
    "skip_list": "data.init_args.reading.skip_list",
    "teacher_cache": "model.init_args.teacher_cache",
}
"""New settings, by names of settings below ``data.init_args`` before version 0.1."""


def moved_setting(message: str) -> str:
    """Return the new name of the setting that a message of jsonargparse refuses, as its hint."""
    named = re.search(r"ption '([\w.]+)'", message)
    new = SETTINGS.get(named[1].rpartition(".")[2]) if named else None
    return f" (did you mean {new}?)" if new else ""
