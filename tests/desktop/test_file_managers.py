"""Real file managers on a virtual screen: a folder of large images shows its pictures unread."""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image, ImageDraw
from trees import MountedTree, environment, need_fuse, start_mount, wait_until

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
    with LocalServer(ServerOptions(source=folder.parent)) as running:
        for sample in running.samples():
            colour = colour_of(int(sample["fileName"][-8:-4]))
            add_thumbnail(running, sample, Image.new("RGB", (128, 96), colour))
        yield running


def add_thumbnail(server: LocalServer, sample: dict[str, Any], thumbnail: Image.Image) -> None:
    """Put the thumbnail of a sample, as Lightly's workers do."""
    out = io.BytesIO()
    thumbnail.save(out, "WEBP", lossless=True)
    url = f"{server.url}/v1/datasets/{server.dataset_id}/samples/{sample['id']}/writeurl"
    params = {"token": server.token, "isThumbnail": "true"}
    put = requests.put(requests.get(url, params=params, timeout=10).json(), data=out.getvalue(), timeout=10)
    put.raise_for_status()


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
    # GTK 4 draws with OpenGL by default; without a graphics card its spinner takes all time from the listing
    environ = {**environ, "GSK_RENDERER": "cairo"}
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


def need_tools(program: str) -> None:
    """Fail where something is not installed, with the way out."""
    missing = [tool for tool in (*TOOLS, program) if shutil.which(tool) is None]
    if missing:
        pytest.fail(f"not installed: {', '.join(missing)}; `make desktop` installs them by apt")


@pytest.mark.parametrize("program", FILE_MANAGERS)
def test_a_folder_shows_its_pictures_and_hardly_a_byte_is_read(
    server: LocalServer, tmp_path: Path, program: str
) -> None:
    need_fuse("3")
    need_tools(program)
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


# so large is the window of the picture
WINDOW = (900, 560)
SETTINGS_OF_PCMANFM = {
    "libfm/libfm.conf": "[ui]\nbig_icon_size=96\nthumbnail_size=128\n",
    "pcmanfm/default/pcmanfm.conf": "[ui]\nwin_width={}\nwin_height={}\nmaximized=0\nsplitter_pos=130\n",
}
SCENES = 15


def scene(number: int) -> Image.Image:
    """A hill below a sun, whose ground has a colour of its own."""
    made = Image.new("RGB", (640, 480))
    draw = ImageDraw.Draw(made)
    for y in range(480):
        warm = y / 480
        draw.line([(0, y), (640, y)], fill=(90 + int(150 * warm), 140 + int(60 * warm), 220 - int(60 * warm)))
    x, y = 80 + number * 211 % 480, 70 + number * 97 % 150
    draw.ellipse([x - 45, y - 45, x + 45, y + 45], fill=(255, 236, 150))
    for layer, shade in enumerate((0.7, 1.0)):
        hills = [
            (x, 250 + 70 * layer + int(55 * math.sin(x / (70 + 11 * number % 60) + number * 1.7 + layer * 2)))
            for x in range(641)
        ]
        ground = tuple(int(part * shade) for part in colour_of(number + 1))
        draw.polygon([(0, 480), *hills, (640, 480)], fill=ground)
    return made


@contextlib.contextmanager
def hills(tmp_path: Path) -> Iterator[MountedTree]:
    """A mount of scenes with thumbnails, in the home LIGHTLYFS_PICTURES_HOME: paths are in the pictures."""
    need_fuse("3")
    (tmp_path / "own").mkdir()
    home = Path(os.environ.get("LIGHTLYFS_PICTURES_HOME", tmp_path))
    mountpoint = home / "images"
    mountpoint.mkdir()
    with LocalServer(ServerOptions(source=tmp_path / "own", dataset_name="hills")) as running:
        for number in range(SCENES):
            out = io.BytesIO()
            scene(number).save(out, "JPEG", quality=90)
            running.add_sample(f"valley/hill-{number:02}.jpg", out.getvalue())
        for sample in running.samples():
            add_thumbnail(running, sample, scene(int(sample["fileName"][-6:-4])).resize((128, 96)))
        environ = environment(running, home / ".cache")
        tree = start_mount("hills", mountpoint, environ, tmp_path / "mount.log")
        try:
            yield tree
        finally:
            tree.end()
    mountpoint.rmdir()


def keep(shot: Path, name: str, size: tuple[int, int]) -> None:
    """Keep the upper left of a screenshot in the folder that LIGHTLYFS_PICTURES names, for the documents."""
    if folder := os.environ.get("LIGHTLYFS_PICTURES"):
        window = Image.open(shot).convert("RGB").crop((0, 0, *size))
        window.quantize(256).save(Path(folder, name), optimize=True)


def test_the_picture_of_the_readme(tmp_path: Path) -> None:
    """A window with thumbnails of a mount."""
    need_tools("pcmanfm")
    for name, text in SETTINGS_OF_PCMANFM.items():
        path = tmp_path / ".config" / name
        path.parent.mkdir(parents=True)
        path.write_text(text.format(*WINDOW))
    shot = tmp_path / "shot.png"
    with hills(tmp_path) as tree, screen(78) as display:
        desktop = {**tree.environ, "DISPLAY": display, "HOME": str(tmp_path), "NO_AT_BRIDGE": "1"}
        desktop["XDG_CONFIG_HOME"] = str(tmp_path / ".config")
        with session([*FILE_MANAGERS["pcmanfm"], str(tree.mountpoint / "valley")], desktop):
            wait_until(lambda: pictures_in(screenshot(display, shot)) >= SCENES, SHOWN_S)
    keep(shot, "file-manager.png", WINDOW)


def test_the_picture_of_the_status(tmp_path: Path) -> None:
    """A terminal with `lightlyfs status --watch`, which counts what is read meanwhile."""
    need_tools("xterm")
    shot = tmp_path / "shot.png"
    with hills(tmp_path) as tree, screen(79) as display:

        def terminal_shows() -> tuple[int, bytes]:
            """How many pixels of text there are, on the white of a terminal, and all of it."""
            whole = screenshot(display, shot)
            window = whole.crop(whole.getbbox() or (0, 0, 1, 1)).convert("L")
            return sum(window.histogram()[:64]), window.tobytes()

        watch = [sys.executable, "-m", "lightlyfs", "status", "--watch", str(tree.mountpoint)]
        terminal = ["xterm", "-geometry", "104x11+0+0", "-fa", "DejaVu Sans Mono", "-fs", "11", "-e", *watch]
        with session(terminal, {**tree.environ, "DISPLAY": display}):
            wait_until(lambda: terminal_shows()[0] > 3_000, SHOWN_S)
            _, before = terminal_shows()
            for path in sorted((tree.mountpoint / "valley").iterdir()):
                path.read_bytes()
            wait_until(lambda: terminal_shows()[0] > 3_000 and terminal_shows()[1] != before, SHOWN_S)
    _, _, right, bottom = Image.open(shot).convert("RGB").getbbox() or (0, 0, 0, 0)
    keep(shot, "status.png", (right, bottom))
