"""Mounts as services: `lightlyfs deploy NAME` prints the files, and a mount tells systemd how it is."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

import click

# name on the command line: file in lightlyfs/deploy
_FILES = {
    "system-unit": "system-unit.service",
    "user-unit": "user-unit.service",
    "containerfile": "Containerfile",
    "kubernetes": "kubernetes.yaml",
    "grafana": "grafana.json",
}


@click.command()
@click.argument("name", type=click.Choice(tuple(_FILES)))
def deploy(name: str) -> None:
    """Print a file that runs a mount as a service; its first lines say how to use it.

    system-unit and user-unit are for systemd, with the path of this program in them; containerfile is for
    an image, kubernetes a pod whose sidecar mounts; grafana is a board of what --metrics-port answers.
    """
    text = resources.files("lightlyfs").joinpath("deploy", _FILES[name]).read_text(encoding="utf-8")
    if name.endswith("-unit"):
        # systemd looks in the system's own directories only, where a virtual environment is not
        text = text.replace("=lightlyfs ", f"={_program()} ")
    click.echo(text, nl=False)


def _program() -> str:
    beside = Path(sys.executable).with_name("lightlyfs")
    return str(beside) if beside.exists() else shutil.which("lightlyfs") or "lightlyfs"


# telling systemd how a service is: ready, alive, stopping (sd_notify(3))

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
