"""`lightlyfs demo`: everything in a minute, without an account or a network."""

from __future__ import annotations

import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from lightlyfs import mountpoints
from lightlyfs.cli.output import tell
from lightlyfs.errors import StartError
from lightlyfs.kernel import binding
from lightlyfs.mountpoints import mount_table

_COLOURS = {"red": (200, 60, 50), "green": (60, 160, 80), "blue": (50, 90, 190)}
_START_TIMEOUT_S = 30.0


@click.command()
def demo() -> None:
    """Serve sample images, mount them, look at them as files, unmount."""
    binding.check_device()
    binding.find_library()
    # named before anything is created, so that after a signal at any moment all of it can be removed
    root = Path(tempfile.gettempdir()).resolve() / f"lightlyfs-demo-{secrets.token_hex(8)}"
    _Demo(root).run()
    _say("That was all. To mount a dataset of yours: LIGHTLY_TOKEN=... lightlyfs mount DATASET DIR")


class _OneSignal:
    """The first SIGINT, SIGTERM or SIGHUP ends the demo, between two steps; no signal ends its end."""

    def __init__(self) -> None:
        self._held = False
        self._ending = False
        self._got = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._take)

    def _take(self, number: int, _frame: object) -> None:
        if self._ending:
            return
        self._got = number
        if not self._held:
            self._raise()

    def _raise(self) -> None:
        self._ending = True
        raise KeyboardInterrupt if self._got == signal.SIGINT else SystemExit(128 + self._got)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Run a step without interruption, such as the start of a process; a signal takes effect after it."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._got and not self._ending:
            self._raise()

    def ignore(self) -> None:
        """From now on no signal counts."""
        self._ending = True


class _Demo:
    """What the demo makes below `root`, and its end, which removes all of it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._images, self._mountpoint = root / "images", root / "mnt"
        self._server: subprocess.Popen[str] | None = None
        self._environ: dict[str, str] = {}
        self._signals = _OneSignal()

    def run(self) -> None:
        """All of it; whatever happens, nothing is left."""
        try:
            try:
                self._root.mkdir(mode=0o700)
                self._mountpoint.mkdir()
                _say("Making pictures, and serving them as a Lightly dataset")
                _make_pictures(self._images)
                self._serve()
                self._walk_through()
            finally:
                # a signal that came before this counts, and no other follows
                self._signals.ignore()
        finally:
            self._end()

    def _end(self) -> None:
        if self._is_mounted():
            _say("Unmounting it")
            try:
                self._run("umount", str(self._mountpoint))
            except StartError as error:
                tell(str(error))
            if self._is_mounted():
                mountpoints.unmount(self._mountpoint, lazy=True)
        if self._server is not None:
            self._server.terminate()
            self._server.communicate()
        if not self._root.exists():
            return
        if self._is_mounted() or _is_another_device(self._mountpoint, self._root):
            raise StartError(f"{self._root} stays, for something is mounted below it")
        shutil.rmtree(self._root, ignore_errors=True)
        if self._root.exists():
            raise StartError(f"{self._root} cannot be removed, for a process still writes there")

    def _is_mounted(self) -> bool:
        return any(entry.mountpoint.is_relative_to(self._root) for entry in mount_table())

    def _serve(self) -> None:
        command = [sys.executable, "-m", "lightlyfs", "serve", str(self._images), "--dataset-name", "demo"]
        with self._signals.held():
            # in a session of its own: a Ctrl-C is to end the mount first
            self._server = subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
        assert self._server.stdout is not None
        exports = [self._server.stdout.readline() for _ in range(4)]
        if not all(exports):
            raise StartError("the local server did not start; its own line above says why")
        pairs = [line.removeprefix("export ").strip().split("=", 1) for line in exports]
        self._environ = {
            **os.environ,
            **dict(pairs),
            **{f"XDG_{kind}_HOME": str(self._root / kind.lower()) for kind in ("CACHE", "STATE")},
        }

    def _walk_through(self) -> None:
        mountpoint, images = self._mountpoint, self._images
        _say("Mounting it")
        with self._signals.held():
            self._run("mount", self._environ["LIGHTLY_DATASET_ID"], str(mountpoint))
        _say("It is a folder")
        for path in sorted(mountpoint.rglob("*")):
            kind = "dir" if path.is_dir() else f"{path.stat().st_size:,} bytes"
            click.echo(f"    {path.relative_to(mountpoint)}  {kind}")
        _open_one(mountpoint / "colours" / "red.png", images / "colours" / "red.png")
        _say("What Lightly knows of it, as extended attributes")
        _show_attributes(mountpoint / "colours" / "red.png")
        _copy_one_in(mountpoint, images)
        _say("What the mount did")
        self._run("status", str(mountpoint))

    def _run(self, *words: str) -> None:
        click.echo(f"  $ lightlyfs {' '.join(words)}")
        try:
            # a session of its own, as for the server
            done = subprocess.run(
                [sys.executable, "-m", "lightlyfs", *words],
                env=self._environ,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
                timeout=_START_TIMEOUT_S,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise StartError(f"the demo stopped: lightlyfs {words[0]} did not end") from None
        click.echo("".join(f"    {line}\n" for line in done.stdout.splitlines()), nl=False)
        if done.returncode:
            raise StartError(f"the demo stopped: lightlyfs {words[0]} failed with code {done.returncode}")


def _is_another_device(path: Path, root: Path) -> bool:
    return path.exists() and path.stat().st_dev != root.stat().st_dev


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


def _say(text: str) -> None:
    click.secho(f"\n{text}", bold=True)
