"""`lightlyfs deploy NAME`: files that run a mount as a service, beside the package so that they fit it."""

from __future__ import annotations

import shutil
import sys
from importlib import resources
from pathlib import Path

import click

# name on the command line: file in lightlyfs/deploy
_FILES = {
    "system-unit": "system-unit.service",
    "user-unit": "user-unit.service",
    "containerfile": "Containerfile",
    "compose": "compose.yaml",
    "kubernetes": "kubernetes.yaml",
    "grafana": "grafana.json",
}


@click.command()
@click.argument("name", type=click.Choice(tuple(_FILES)), metavar="NAME")
def deploy(name: str) -> None:
    """Print a file that runs a mount as a service; its first lines say how to use it.

    system-unit and user-unit are for systemd, with the path of this program in them; containerfile is for
    an image, compose and kubernetes have a sidecar that mounts; grafana is a dashboard of the metrics of
    --metrics-port.
    """
    text = resources.files("lightlyfs").joinpath("deploy", _FILES[name]).read_text(encoding="utf-8")
    if name.endswith("-unit"):
        # systemd looks in the system's own directories only, where a virtual environment is not
        text = text.replace("=lightlyfs ", f"={_program()} ")
    click.echo(text, nl=False)


def _program() -> str:
    beside = Path(sys.executable).with_name("lightlyfs")
    return str(beside) if beside.exists() else shutil.which("lightlyfs") or "lightlyfs"
