"""Quick check of the Hugging Face hub, whose client retries for half a minute per file."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # re-exported, but not for mypy

from kdpl.errors import KdplError, reason

WITHOUT_NETWORK = "; to try things out without, run with --teacher quickstart --student quickstart"
"""End of the message about weights that cannot be fetched: the miniature CLIPs ship with kdpl."""

_SECONDS = 5.0


class HubUnreachableError(Exception):
    """The hub does not answer; the message says why, as part of a sentence."""


def require_hub() -> None:
    """Request any response from the hub; a HubUnreachableError says why there is none."""
    if constants.HF_HUB_OFFLINE:
        raise HubUnreachableError("HF_HUB_OFFLINE is set")
    try:
        # any response will do
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception as error:  # the transport's errors differ between versions of the client
        raise HubUnreachableError(
            f"{constants.ENDPOINT} does not answer: {reason(error)}"
        ) from error


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Let the hub's client use only its cache if the hub cannot be reached."""
    try:
        require_hub()
    except HubUnreachableError as unreachable:
        # offline for the block, whose error then says why
        before = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = True
        try:
            yield
        except KdplError:
            raise
        except Exception as error:
            raise unreachable from error
        finally:
            constants.HF_HUB_OFFLINE = before
    else:
        yield
