"""Real file managers on a virtual screen: a folder of large images shows its pictures unread."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from PIL import Image
from trees import environment, need_fuse, start_mount, wait_until

from lightlyfs.testing import LocalServer, ServerOptions

pytestmark = [pytest.mark.desktop, pytest.mark.fuse]

FILES, IMAGE_BYTES = 1_000, 5_000_000
FILE_MANAGERS = {"thunar": ["thunar"], "pcmanfm": ["pcmanfm", "--no-desktop"], "nautilus": ["nautilus"]}
TOOLS = ("Xvfb", "dbus-run-session", "xwd", "convert")
# so much of the bytes may be fetched
SHARE = 0.02
# after this long every one of them was seen to have read what it reads (file by file, from the first on)
WATCHED_S = 20.0
SHOWN_S = 30.0


def colour_of(number: int) -> tuple[int, int, int]:
    """A colour that no neighbour has."""
    return (number * 67 % 256, number * 131 % 256, 40 + number * 29 % 200)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """1,000 images of 5 MB (one, by many names), each with a thumbnail in a colour of its own."""
    folder = tmp_path_factory.mktemp("images") / "shown"
    folder.mkdir()
    noise = io.BytesIO()
    Image.effect_noise((1500, 1500), 80).convert("RGB").save(noise, "JPEG", quality=98)
    first = folder / "0000.jpg"
    first.write_bytes(noise.getvalue().ljust(IMAGE_BYTES, b"\0"))
    for number in range(1, FILES):
        os.link(first, folder / f"{number:04}.jpg")
    with LocalServer(ServerOptions(source=folder.parent)) as running, requests.Session() as session:
        for sample in running.samples():
            out = io.BytesIO()
            colour = colour_of(int(sample["fileName"][-8:-4]))
            Image.new("RGB", (128, 96), colour).save(out, "WEBP", lossless=True)
            url = f"{running.url}/v1/datasets/{running.dataset_id}/samples/{sample['id']}/writeurl"
            params = {"token": running.token, "isThumbnail": "true"}
            session.put(session.get(url, params=params).json(), data=out.getvalue()).raise_for_status()
        yield running


@contextlib.contextmanager
def screen(number: int) -> Iterator[str]:
    """A virtual screen."""
    with subprocess.Popen(
        ["Xvfb", f":{number}", "-screen", "0", "1280x900x24"], stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(lambda: Path(f"/tmp/.X11-unix/X{number}").exists(), 10)
            yield f":{number}"
        finally:
            process.terminate()


@contextlib.contextmanager
def session(command: list[str], environ: dict[str, str]) -> Iterator[None]:
    """A desktop program with a message bus of its own; all of it ends with the block."""
    words = ["dbus-run-session", "--", *command]
    process = subprocess.Popen(
        words, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def screenshot(display: str, to: Path) -> Image.Image:
    """What the screen shows."""
    dump = subprocess.run(["xwd", "-root", "-silent", "-display", display], capture_output=True, check=True)
    subprocess.run(["convert", "xwd:-", str(to)], input=dump.stdout, check=True)
    return Image.open(to).convert("RGB")


def pictures_in(shot: Image.Image) -> int:
    """How many thumbnails a screen shows, by their colours; which ones depends on where it scrolled to."""
    colours = shot.getcolors(1 << 24) or []
    known = [colour_of(number) for number in range(FILES)]
    return sum(
        count > 200 and any(all(abs(a - b) <= 3 for a, b in zip(one, other, strict=True)) for other in known)
        for count, one in colours
    )


@pytest.mark.parametrize("program", FILE_MANAGERS)
def test_a_folder_shows_its_pictures_and_hardly_a_byte_is_read(
    server: LocalServer, tmp_path: Path, program: str
) -> None:
    need_fuse("3")
    missing = [tool for tool in (*TOOLS, program) if shutil.which(tool) is None]
    if missing:
        pytest.fail(f"not installed: {', '.join(missing)}; `make desktop` installs them by apt")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    environ = environment(server, tmp_path / "cache")
    tree = start_mount(server.dataset_id, mountpoint, environ, tmp_path / "mount.log")
    server.stats.reset()
    try:
        with screen(77) as display:
            desktop = {**tree.environ, "DISPLAY": display, "HOME": str(tmp_path), "NO_AT_BRIDGE": "1"}
            with session([*FILE_MANAGERS[program], str(mountpoint / "shown")], desktop):
                started = time.monotonic()
                shot = tmp_path / f"{program}.png"
                wait_until(lambda: pictures_in(screenshot(display, shot)) >= 10, SHOWN_S)
                # the rest of the time it is watched for what it reads behind
                wait_until(lambda: time.monotonic() - started > WATCHED_S, WATCHED_S + 5)
        sent = server.stats.snapshot()["bytes_sent"]
        assert sent <= SHARE * FILES * IMAGE_BYTES, f"{sent:,} bytes were sent"
        sys.stderr.write(f"\n{program}: {sent:,} bytes were sent of {FILES * IMAGE_BYTES:,}\n")
    finally:
        tree.end()
