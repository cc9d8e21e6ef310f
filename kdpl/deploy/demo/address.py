"""Where the page is: a host and port that can be listened on, and a browser to show them in."""

import errno
import os
import socket
import sys
import webbrowser
from collections.abc import Sequence

from kdpl.errors import ConfigError

ANYWHERE = "0.0.0.0"  # noqa: S104 - only where the user asks for it


def free_port(host: str, ports: Sequence[int]) -> int:
    """Give the first port that can be listened on.

    Args:
        host: IPv4 address or name of this machine.
        ports: Ports to try, in order; 0 stands for any that is free.

    Raises:
        ConfigError: The host is not of this machine, or no port can be had.
    """
    fault = ""
    for port in ports:
        if not 0 <= port <= 65535:
            raise ConfigError(f"--port is {port}, expected 0 to 65535: give another number")
        try:
            with socket.socket() as tried:
                # a port that was left a moment ago is free
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind((host, port))
                return int(tried.getsockname()[1])
        except PermissionError:
            fault = "may not be listened on"
        except socket.gaierror as error:
            raise _no_host(host) from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise _no_host(host) from error
            fault = "is in use"
    one, several = f"port {ports[0]} of {host} {fault}", f"each port of {host} from {ports[0]} to {ports[-1]} {fault}"
    raise ConfigError(f"{one if len(ports) == 1 else several}: give another --port, or 0 for any")


def _no_host(host: str) -> ConfigError:
    return ConfigError(f"--host {host} is no IPv4 address of this machine: give 127.0.0.1, or {ANYWHERE} for all")


def stay_local(host: str) -> dict[str, str]:
    """Give the variables that keep a proxy from being asked for this machine's own address."""
    exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return {"no_proxy": ",".join(filter(None, [exempt, "127.0.0.1", "localhost", host]))}


def show_page(url: str) -> None:
    """Open the browser, where there is a screen: without one, Python would start a browser in the terminal."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(url)
