"""Telling systemd how a service is: ready, alive, stopping (sd_notify(3), without its library)."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send a state such as `READY=1`; False where nobody waits for it, or does not hear it."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    # "@" stands for the NUL of an abstract address
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), target)
    except OSError as error:
        log.warning("systemd was not told %s: %s", state.partition("=")[0], error)
        return False
    return True


def start_watchdog(is_alive: Callable[[], bool], environ: Mapping[str, str] = os.environ) -> None:
    """Tell systemd twice in each interval of its watchdog that the mount answers, as long as it does."""
    wanted = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    interval_us = environ.get("WATCHDOG_USEC", "")
    if not wanted or not interval_us.isdigit() or int(interval_us) == 0:
        return

    def run() -> None:
        pause = threading.Event()
        while not pause.wait(int(interval_us) / 2e6):
            if is_alive():
                notify("WATCHDOG=1", environ)

    threading.Thread(target=run, name="lightlyfs-watchdog", daemon=True).start()
