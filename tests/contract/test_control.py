"""The control socket: messages, descriptors beside them, sessions, and callers in any number."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lightlyfs import control
from lightlyfs.control import Channel, ControlServer, NoAnswer, ask, dial, request
from lightlyfs.errors import NoSuchFile


class Mount:
    """A server with a command and a session of each kind, and a gate that one of them waits at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gate = threading.Event()
        self.sessions_ended = threading.Semaphore(0)
        commands = {"hello": lambda: {"n": 1}, "wait": self.wait, "broken": lambda: {"n": 1 // 0}}
        self.server = ControlServer(path, commands, {"echo": self.echo, "refuse": self.refuse})

    def wait(self) -> Mapping[str, Any]:
        assert self.gate.wait(20)
        return {}

    def echo(self, message: Mapping[str, Any] | None, channel: Channel) -> None:
        try:
            while message is not None:
                descriptor = channel.take_descriptor()
                channel.send({"ok": True, "got": message.get("text")}, descriptor)
                if descriptor is not None:
                    os.close(descriptor)
                message = channel.receive()
        finally:
            self.sessions_ended.release()

    def refuse(self, _message: Mapping[str, Any], _channel: Channel) -> None:
        raise NoSuchFile("there is none")

    def dial(self) -> Channel:
        channel = dial(self.path, timeout_s=10)
        assert channel is not None
        return channel


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    running = Mount(tmp_path / "s.sock")
    running.server.start()
    yield running
    running.gate.set()
    running.server.close()


def test_a_command_is_answered_and_so_is_one_that_is_not_known(mount: Mount) -> None:
    assert ask(mount.path, "hello") == {"ok": True, "n": 1}
    assert ask(mount.path, "other") == {"ok": False, "error": "this mount does not know that command"}
    assert ask(mount.path, "broken") == {"ok": False, "error": "the mount failed; its log says why"}
    assert ask(mount.path, "refuse") == {"ok": False, "error": "there is none"}
    assert mount.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("line", [b"no json\n", b"[]\n", b"{}\n", b'{"command": []}\n'])
def test_nonsense_is_answered_with_a_failure(mount: Mount, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(mount.path))
        raw.sendall(line)
        assert json.loads(raw.makefile().readline())["ok"] is False


def test_nobody_there_is_none(tmp_path: Path) -> None:
    assert ask(tmp_path / "nothing.sock", "hello") is None
    assert dial(tmp_path / "nothing.sock", timeout_s=1) is None


def test_a_session_goes_on_until_somebody_hangs_up(mount: Mount) -> None:
    channel = mount.dial()
    for text in ("a", "b\nc", "é" * 100_000):
        channel.send({"command": "echo", "text": text})
        assert channel.receive() == {"ok": True, "got": text}
    assert not channel.has_ended()
    channel.close()
    assert mount.sessions_ended.acquire(timeout=10)


def test_each_descriptor_comes_with_its_message(mount: Mount, tmp_path: Path) -> None:
    channel = mount.dial()
    for number in range(20):
        path = tmp_path / f"{number}"
        path.write_text(str(number))
        with path.open() as file:
            channel.send({"command": "echo", "text": "x" * number * 7000}, file.fileno())
        assert channel.receive() is not None
        descriptor = channel.take_descriptor()
        assert descriptor is not None
        assert not os.get_inheritable(descriptor)
        with os.fdopen(descriptor) as found:
            assert found.read() == str(number)
        assert channel.take_descriptor() is None
    channel.close()


def test_what_nobody_takes_is_closed(mount: Mount) -> None:
    def held() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = held()
    for _ in range(20):
        channel = mount.dial()
        reader, writer = os.pipe()
        channel.send({"command": "hello"}, reader)
        os.close(reader)
        assert channel.receive() == {"ok": True, "n": 1}
        assert channel.receive() is None  # the mount has hung up, and let go of what it was sent
        channel.close()
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"x")
        os.close(writer)
    assert held() <= before + 2


def test_a_line_without_end_is_refused(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_MAX_LINE", 10_000)
    channel = mount.dial()
    channel.send({"command": "x" * 200_000})
    answer = channel.receive()
    assert answer is not None
    assert not answer["ok"]


def test_callers_beyond_the_bound_are_hung_up_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(control, "_MAX_CONNECTIONS", 2)
    small = Mount(tmp_path / "small.sock")
    small.server.start()
    waiting = [small.dial() for _ in range(2)]
    for channel in waiting:
        channel.send({"command": "wait"})
    assert ask(small.path, "hello") is None
    small.gate.set()
    assert [channel.receive() for channel in waiting] == [{"ok": True}, {"ok": True}]
    small.server.close()


def test_sessions_leave_room_for_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(control, "_MAX_SESSIONS", 2)
    small = Mount(tmp_path / "small.sock")
    small.server.start()
    channels = [small.dial() for _ in range(3)]
    for channel in channels:
        channel.send({"command": "echo"})
    answers = [channel.receive() for channel in channels]
    assert sorted(bool(answer and answer["ok"]) for answer in answers) == [False, True, True]
    assert ask(small.path, "hello") == {"ok": True, "n": 1}
    small.server.close()


def test_one_that_waits_keeps_no_other_waiting(mount: Mount) -> None:
    waiting = mount.dial()
    waiting.send({"command": "wait"})
    assert ask(mount.path, "hello", timeout_s=5) == {"ok": True, "n": 1}
    mount.gate.set()
    assert waiting.receive() == {"ok": True}
    waiting.close()


def test_who_asks_a_mount_that_hangs_hears_which_process_it_is(mount: Mount) -> None:
    with pytest.raises(NoAnswer) as caught:
        request(mount.path, "wait", timeout_s=0.1)

    assert caught.value.pid == os.getpid()
    assert ask(mount.path, "wait", timeout_s=0.1) is None


def test_a_mount_is_reached_by_its_name_when_its_directory_is_gone(tmp_path: Path) -> None:
    name = f"\0lightlyfs-test-{os.getpid()}"
    server = ControlServer(tmp_path / "s.sock", {"hello": lambda: {"n": 1}})
    server.start(name)
    (tmp_path / "s.sock").unlink()
    try:
        assert ask(name, "hello") == {"ok": True, "n": 1}
    finally:
        server.close()
    assert ask(name, "hello") is None


def test_a_path_that_is_too_long_for_a_socket_is_reached_all_the_same(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 100) / ("y" * 100)
    directory.mkdir(parents=True)
    server = ControlServer(directory / "a.sock", {"status": lambda: {"pid": 7}})
    server.start()
    try:
        assert ask(directory / "a.sock", "status") == {"ok": True, "pid": 7}
    finally:
        server.close()
    assert ask(directory / "a.sock", "status") is None
    assert ask(tmp_path / ("z" * 200) / "a.sock", "status") is None


def test_a_server_without_a_thread_answers_again_once_there_is_one(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(control._MAX_CONNECTIONS + 1):
            assert ask(mount.path, "hello") is None
    assert ask(mount.path, "hello") == {"ok": True, "n": 1}
