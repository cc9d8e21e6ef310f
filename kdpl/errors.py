"""What can go wrong through no fault of the code: one family, one sentence each.

A message names the thing, says what was expected and what to do. The command line prints it
without a traceback; ``--debug`` shows the traceback.
"""


class KdplError(Exception):
    """Base of every error that a user of kdpl can mend."""


class ConfigError(KdplError):
    """A setting that cannot be, or settings that do not go together."""


class DataError(KdplError):
    """A dataset, folder or image that is missing, empty or unreadable."""


class WeightsError(KdplError):
    """CLIP weights that are missing, of another kind than supported, or not those that were expected."""


class ArtifactError(KdplError):
    """Class vectors, a teacher or a classifier that is missing, damaged or does not fit."""
