"""`lightlyfs demo`: everything in a minute, without an account or a network."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from lightlyfs.errors import StartError
from lightlyfs.kernel import binding

_COLOURS = {"red": (200, 60, 50), "green": (60, 160, 80), "blue": (50, 90, 190)}
_START_TIMEOUT_S = 30.0


@click.command()
def demo() -> None:
    """Serve sample images, mount them, look at them as files, unmount."""
    binding.check_device()
    binding.find_library()
    with tempfile.TemporaryDirectory(prefix="lightlyfs-demo-") as directory:
        root = Path(directory)
        images, mountpoint = root / "images", root / "mnt"
        mountpoint.mkdir()
        _say("Making pictures, and serving them as a Lightly dataset")
        _make_pictures(images)
        with _serving(images, root) as environ:
            _walk_through(mountpoint, images, environ)
    _say("That was all. To mount a dataset of yours: LIGHTLY_TOKEN=... lightlyfs mount DATASET DIR")


def _walk_through(mountpoint: Path, images: Path, environ: dict[str, str]) -> None:
    dataset = environ["LIGHTLY_DATASET_ID"]
    _say("Mounting it")
    _run(["mount", dataset, str(mountpoint)], environ)
    try:
        _say("It is a folder")
        for path in sorted(mountpoint.rglob("*")):
            kind = "dir" if path.is_dir() else f"{path.stat().st_size:,} bytes"
            click.echo(f"    {path.relative_to(mountpoint)}  {kind}")
        _open_one(mountpoint / "colours" / "red.png", images / "colours" / "red.png")
        _say("What Lightly knows of it, as extended attributes")
        _show_attributes(mountpoint / "colours" / "red.png")
        _copy_one_in(mountpoint, images)
        _say("What the mount did")
        _run(["status", str(mountpoint)], environ)
    finally:
        _say("Unmounting it")
        _run(["umount", str(mountpoint)], environ)


def _open_one(path: Path, original: Path) -> None:
    from PIL import Image

    _say(f"An image tool opens {path.name} by its path")
    with Image.open(path) as image:
        click.echo(f"    {image.format} of {image.width} x {image.height} pixels, mode {image.mode}")
    if path.read_bytes() != original.read_bytes():
        raise StartError(f"{path} does not hold the bytes of the original; please report this")
    click.echo("    its bytes are those of the original")


def _copy_one_in(mountpoint: Path, images: Path) -> None:
    _say("A file that is copied in becomes a sample")
    shutil.copyfile(images / "waves" / "wave-0.jpg", mountpoint / "copied.jpg")
    state = os.getxattr(mountpoint / "copied.jpg", "user.lightly.upload").decode()
    click.echo(f"    copied.jpg  {state}, and on the server: {(images / 'copied.jpg').exists()}")


def _show_attributes(path: Path) -> None:
    for name in sorted(os.listxattr(path)):
        click.echo(f"    {name} = {os.getxattr(path, name).decode()}")


def _make_pictures(directory: Path) -> None:
    from PIL import Image

    for name, colour in _COLOURS.items():
        target = directory / "colours" / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (96, 64), colour).save(target)
    for number in range(3):
        image = Image.new("L", (160, 120))
        image.putdata([_wave(x, y, number + 1) for y in range(120) for x in range(160)])
        target = directory / "waves" / f"wave-{number}.jpg"
        target.parent.mkdir(exist_ok=True)
        image.save(target, quality=85)


def _wave(x: int, y: int, frequency: int) -> int:
    return int(127.5 * (1 + math.sin(frequency * x / 12) * math.cos(frequency * y / 12)))


@contextmanager
def _serving(images: Path, root: Path) -> Iterator[dict[str, str]]:
    command = [sys.executable, "-m", "lightlyfs", "serve", str(images), "--dataset-name", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            exports = [server.stdout.readline() for _ in range(4)]
            if not all(exports):
                raise StartError("the local server did not start; its own line above says why")
            pairs = [line.removeprefix("export ").strip().split("=", 1) for line in exports]
            yield {
                **os.environ,
                **dict(pairs),
                "XDG_CACHE_HOME": str(root / "cache"),
            }
        finally:
            server.terminate()


def _run(words: Sequence[str], environ: dict[str, str]) -> None:
    click.echo(f"  $ lightlyfs {' '.join(words)}")
    done = subprocess.run(
        [sys.executable, "-m", "lightlyfs", *words],
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=_START_TIMEOUT_S,
    )
    click.echo("".join(f"    {line}\n" for line in done.stdout.splitlines()), nl=False)
    if done.returncode:
        raise StartError(f"the demo stopped: lightlyfs {words[0]} failed with code {done.returncode}")


def _say(text: str) -> None:
    click.secho(f"\n{text}", bold=True)
