"""A server one may leave running: nothing leads out of its folder, slow clients end, new files are seen."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from serverkit import FILES, Api

from lightlyfs.testing import ConnectionLimits, LocalServer, ServerOptions

LIMITS = ConnectionLimits(connections=5, headers_s=0.4, body_s=0.8)
SECRET = b"not in the folder"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the served one, with something to find."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.jpg").write_bytes(SECRET)
    return folder


@pytest.fixture
def hurried(folder: Path) -> Iterator[LocalServer]:
    """A server of small limits."""
    with LocalServer(ServerOptions(source=folder, limits=LIMITS)) as server:
        yield server


def names(server: LocalServer) -> set[str]:
    return {row["fileName"] for row in server.samples()}


def forced(old: Path, new: Path) -> None:
    """Rename, also where an upload made the folder again meanwhile."""
    while True:
        try:
            old.rename(new)
            return
        except OSError:
            shutil.rmtree(new, ignore_errors=True)


# what is listed


def test_hidden_files_and_links_out_are_not_listed_and_links_inside_are(folder: Path, outside: Path) -> None:
    (folder / ".hidden.jpg").write_bytes(b"1")
    (folder / ".git/objects").mkdir(parents=True)
    (folder / ".git/objects/x.jpg").write_bytes(b"1")
    (folder / "out.jpg").symlink_to(outside / "secret.jpg")
    (folder / "out").symlink_to(outside)
    (folder / "up.jpg").symlink_to("../outside/secret.jpg")
    (folder / "to-hidden.jpg").symlink_to(".hidden.jpg")
    (folder / "absolute.jpg").symlink_to(folder / "a/one.jpg")
    (folder / "b/relative.jpg").symlink_to("../a/one.jpg")
    (folder / "nowhere.jpg").symlink_to("nothing")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    with LocalServer(ServerOptions(source=folder)) as server:
        api = Api(server)
        assert names(server) == {*FILES, "absolute.jpg", "b/relative.jpg"}
        for name in ("absolute.jpg", "b/relative.jpg"):
            assert api.session.get(api.read_url(api.id_of(name)), timeout=5).content == FILES["a/one.jpg"]
        api.session.close()


def test_a_tree_deeper_than_the_stack_is_listed(folder: Path) -> None:
    deep, levels = os.open(folder, os.O_RDONLY), 1_050
    for _ in range(levels):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(os.open("end.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=deep))
    os.close(deep)
    try:
        with LocalServer(ServerOptions(source=folder)) as server:
            assert names(server) == {*FILES, "d/" * levels + "end.jpg"}
    finally:
        subprocess.run(["rm", "-r", str(folder / "d")], check=True)  # pytest's own way is not deep enough


def test_files_added_later_are_seen_once_and_keep_their_ids(folder: Path) -> None:
    with LocalServer(ServerOptions(source=folder, rescan_s=0.0)) as server:
        api = Api(server)
        before = {row["fileName"]: row["id"] for row in api.json(api.samples)}
        created = api.create("uploaded.jpg")
        api.session.put(api.write_url(created), data=b"up", timeout=5)
        (folder / "later").mkdir()
        (folder / "later/new.jpg").write_bytes(b"new")
        deadline = time.monotonic() + 10
        while api.json(api.dataset)["nSamples"] != len(FILES) + 2:
            assert time.monotonic() < deadline
        rows = api.json(api.samples)
        assert {row["fileName"]: row["id"] for row in rows}.items() >= before.items()
        assert sorted(row["fileName"] for row in rows) == sorted([*FILES, "uploaded.jpg", "later/new.jpg"])
        assert api.session.get(api.read_url(rows[-1]["id"]), timeout=5).content == b"new"
        api.session.close()


# what is opened


@pytest.mark.parametrize("place", ["a", "a/one.jpg", "b/c"])
def test_what_became_a_link_out_is_not_there_any_more(
    server: LocalServer, api: Api, folder: Path, outside: Path, place: str
) -> None:
    name = next(name for name in FILES if name.startswith(place))
    url, target = api.read_url(api.id_of(name)), api.write_url(api.id_of(name))
    (outside / Path(name).name).write_bytes(SECRET)
    (folder / place).rename(folder / "moved")
    (folder / place).symlink_to(outside / "secret.jpg" if place == name else outside)
    assert api.session.get(url, timeout=5).status_code == 404
    api.session.put(target, data=b"written", timeout=5)
    assert {path.read_bytes() for path in outside.iterdir()} == {SECRET}


def test_a_folder_swapped_for_a_link_all_the_time_never_leads_out(
    server: LocalServer, api: Api, folder: Path, outside: Path
) -> None:
    sample = api.id_of("a/one.jpg")
    url, target = api.read_url(sample), api.write_url(sample)
    (outside / "one.jpg").write_bytes(SECRET)
    (folder / "link").symlink_to(outside)
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            for old, new in (("a", "held"), ("link", "a"), ("a", "link"), ("held", "a")):
                forced(folder / old, folder / new)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        found = set()
        for _ in range(100):
            answer = api.session.get(url, timeout=5)
            found.add(answer.content if answer.status_code == 200 else b"")
            api.session.put(target, data=FILES["a/one.jpg"], timeout=5)
            server._parts.dataset.import_objects()
    finally:
        ended.set()
        swapper.join()
    assert FILES["a/one.jpg"] in found
    assert found <= {FILES["a/one.jpg"], b""}
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {
        "secret.jpg": SECRET,
        "one.jpg": SECRET,
    }
    assert not {name for name in names(server) if "secret" in name}


# who may wait


def connected(server: LocalServer) -> socket.socket:
    place = urlsplit(server.url)
    return socket.create_connection((place.hostname or "", place.port or 0), timeout=10)


def seconds_until_closed(connection: socket.socket) -> float:
    started = time.monotonic()
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - started


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /again"]
)
def test_a_client_that_does_not_end_its_headers_is_ended(hurried: LocalServer, sent: bytes) -> None:
    with closing(connected(hurried)) as connection:
        connection.sendall(sent)
        if b"again" in sent:
            assert b"404" in connection.recv(4096)
            connection.sendall(b"/and again")
        assert LIMITS.headers_s * 0.9 <= seconds_until_closed(connection) < 10


def test_a_client_that_drips_headers_gains_nothing(hurried: LocalServer) -> None:
    with closing(connected(hurried)) as connection:
        started = time.monotonic()
        while drip(connection):
            assert time.monotonic() < started + 5


def drip(connection: socket.socket) -> bool:
    time.sleep(0.02)
    try:
        connection.sendall(b"G")
    except OSError:
        return False
    return True


def test_a_body_that_stands_still_is_ended_and_one_that_moves_is_not(hurried: LocalServer) -> None:
    api = Api(hurried)
    head = f"POST {api.samples} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {hurried.token}\r\n"
    body = b'{"fileName": "slow"}'
    with closing(connected(hurried)) as slow, closing(connected(hurried)) as still:
        for connection in (slow, still):
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        started = time.monotonic()
        for position in range(len(body)):  # longer in all than the limit for a stop
            slow.sendall(body[position : position + 1])
            time.sleep(LIMITS.body_s / 8)
        assert time.monotonic() - started > 2 * LIMITS.body_s
        assert slow.recv(100).startswith(b"HTTP/1.1 201")
        assert seconds_until_closed(still) < 5
    assert "slow" in names(hurried)


def test_a_client_that_takes_no_bytes_is_ended_and_its_file_closed(
    hurried: LocalServer, folder: Path
) -> None:
    (folder / "large.bin").write_bytes(bytes(64 << 20))
    hurried._parts.dataset.import_objects()
    api = Api(hurried)
    target = api.read_url(api.id_of("large.bin")).removeprefix(hurried.url)
    with closing(connected(hurried)) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        deadline = time.monotonic() + 10
        while hurried.stats.snapshot()["in_flight"] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        while hurried.stats.snapshot()["in_flight"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.monotonic() < deadline
    api.session.close()


def test_one_connection_too_many_is_told_so_and_there_is_room_again(hurried: LocalServer) -> None:
    held = [connected(hurried) for _ in range(LIMITS.connections)]
    try:
        for connection in held:
            connection.sendall(b"GET /v1/versions/pip/latest HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        with closing(connected(hurried)) as more:
            more.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert more.recv(4096).startswith(b"HTTP/1.1 503")
    finally:
        for connection in held:
            connection.close()
    deadline = time.monotonic() + 10
    while True:
        with closing(connected(hurried)) as again:
            again.sendall(b"GET /v1/versions/pip/latest HTTP/1.1\r\nHost: x\r\n\r\n")
            if again.recv(4096).startswith(b"HTTP/1.1 200"):
                return
        assert time.monotonic() < deadline


def test_what_anyone_may_ask_for_is_not_counted_without_end(
    server: LocalServer, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightlyfs.testing.instrumentation.PATHS_MAX", 10)
    for number in range(30):
        assert api.call("GET", f"/storage/{number}", token=False).status_code == 403
    assert len(server.stats.snapshot()["storage_paths"]) == 10
