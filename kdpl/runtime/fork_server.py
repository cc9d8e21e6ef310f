"""The process that other processes start from, with everything imported that they need."""

import multiprocessing
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext

from kdpl.runtime.interrupt import held_back


def context(preload: list[str]) -> ForkServerContext | SpawnContext:
    """Start the fork server, if it does not run yet, and give what starts processes from it.

    They do not hear Ctrl-C, unless they call ``interrupt.hear``: it is the one that started them that ends them.

    Args:
        preload: Modules that the server imports: of its first caller, for one process has one server.

    Returns:
        The context; where there are no fork servers, one that starts each process from nothing.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(preload)
    # the fork server would start this one as well, which ends with SIGINT let through
    resource_tracker.ensure_running()
    # it imports for seconds before it knows to ignore Ctrl-C
    with held_back():
        forkserver.ensure_running()
    return server
