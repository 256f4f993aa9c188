"""What cannot be asked is never taken for what is not there: no call over `lightly://` says "empty" then."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from trees import free_port, use_here

from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.fsspec.base import DatasetNotFoundError
from lightlyfs.testing import LocalServer, ServerOptions

Call = Callable[[Any, str, Path], object]

CALLS: dict[str, Call] = {
    "ls": lambda fs, at, _: fs.ls(at),
    "ls of a folder": lambda fs, at, _: fs.ls(f"{at}/red", detail=False),
    "find": lambda fs, at, _: fs.find(at),
    "find with directories": lambda fs, at, _: fs.find(at, withdirs=True),
    "glob": lambda fs, at, _: fs.glob(f"{at}/**/*.jpg"),
    "glob of one": lambda fs, at, _: fs.glob(f"{at}/red/0.jpg"),
    "walk": lambda fs, at, _: list(fs.walk(at)),
    "walk omitting": lambda fs, at, _: list(fs.walk(at, on_error="omit")),
    "walk raising": lambda fs, at, _: list(fs.walk(at, on_error="raise")),
    "exists": lambda fs, at, _: fs.exists(f"{at}/red/0.jpg"),
    "lexists": lambda fs, at, _: fs.lexists(f"{at}/red/0.jpg"),
    "isdir": lambda fs, at, _: fs.isdir(f"{at}/red"),
    "isfile": lambda fs, at, _: fs.isfile(f"{at}/red/0.jpg"),
    "info": lambda fs, at, _: fs.info(f"{at}/red/0.jpg"),
    "size": lambda fs, at, _: fs.size(f"{at}/red/0.jpg"),
    "du": lambda fs, at, _: fs.du(at),
    "du of each": lambda fs, at, _: fs.du(at, total=False, withdirs=True),
    "tree": lambda fs, at, _: fs.tree(at),
    "checksum": lambda fs, at, _: fs.checksum(f"{at}/red/0.jpg"),
    "modified": lambda fs, at, _: fs.modified(f"{at}/red/0.jpg"),
    "cat": lambda fs, at, _: fs.cat(f"{at}/red/0.jpg"),
    "cat of a pattern": lambda fs, at, _: fs.cat(f"{at}/red/*.jpg"),
    "cat omitting": lambda fs, at, _: fs.cat(f"{at}/red/*.jpg", on_error="omit"),
    "cat returning": lambda fs, at, _: fs.cat(at, recursive=True, on_error="return"),
    "open": lambda fs, at, _: fs.open(f"{at}/red/0.jpg"),
    "open_files": lambda fs, at, _: fsspec.open_files(f"lightly://{at}/red/*.jpg", **fs.storage_options),
    "get": lambda fs, at, to: fs.get(f"{at}/red", str(to / "got"), recursive=True),
    "cp": lambda fs, at, _: fs.cp(f"{at}/red", f"{at}/blue", recursive=True),
    "rm": lambda fs, at, _: fs.rm(f"{at}/red", recursive=True),
    "expand_path": lambda fs, at, _: fs.expand_path(at, recursive=True),
    "mapper": lambda fs, at, _: list(fs.get_mapper(f"{at}/red")),
    "mapper holds": lambda fs, at, _: "0.jpg" in fs.get_mapper(f"{at}/red"),
    "mapper gets": lambda fs, at, _: fs.get_mapper(f"{at}/red").get("0.jpg"),
    "makedirs": lambda fs, at, _: fs.makedirs(f"{at}/new", exist_ok=True),
}
# what keeps a dataset from being opened, and what each call raises then
CAUSES: dict[str, type[OSError]] = {
    "no token": OSError,
    "refused token": PermissionError,
    "no server": ConnectionError,
    "no such dataset": DatasetNotFoundError,
    "cache of another": OSError,
}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """Two images in a folder, and the environment to use them."""
    folder = tmp_path / "served/red"
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(b"image")
    with LocalServer(ServerOptions(source=folder.parent, dataset_name="cars")) as server:
        use_here(server, tmp_path / "home", monkeypatch)
        yield server
        fsspec_parts.close_all()


@pytest.mark.parametrize("cause", CAUSES)
def test_nothing_looks_empty_where_it_cannot_start(
    served: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    """One file system for all calls: what fails is tried again by the next one."""
    options: dict[str, Any] = {"upload": "all"}
    if cause == "no token":
        monkeypatch.delenv("LIGHTLY_TOKEN")
    elif cause == "refused token":
        monkeypatch.setenv("LIGHTLY_TOKEN", "another")
    elif cause == "no server":
        monkeypatch.setenv("LIGHTLY_SERVER_LOCATION", f"http://127.0.0.1:{free_port()}")
        monkeypatch.setattr("lightlyfs.app.resolving.quick_policy", _once)
    elif cause == "cache of another":
        # what an earlier mount owes is in it, so that no directory beside that is used
        (tmp_path / "open/host/dataset/uploads").mkdir(parents=True)
        (tmp_path / "open").chmod(0o777)
        options["cache_dir"] = str(tmp_path / "open")
    fs = fsspec.filesystem("lightly", skip_instance_cache=True, **options)
    wrong = {}
    for name, call in CALLS.items():
        if name == "tree" and not hasattr(fs, "tree"):
            continue  # this fsspec has none yet
        try:
            wrong[name] = call(fs, "lorries" if cause == "no such dataset" else "cars", tmp_path)
        except CAUSES[cause] as error:
            if isinstance(error, FileNotFoundError) and cause != "no such dataset":
                wrong[name] = error
        except Exception as error:
            wrong[name] = error
    assert wrong == {}


@pytest.mark.parametrize(
    "look", [list, len, lambda mapper: "x" in mapper, lambda mapper: mapper.dirfs.ls("")]
)
def test_a_mapper_by_its_address_of_no_dataset_is_not_empty(
    served: LocalServer, look: Callable[[Any], object]
) -> None:
    mapper = fsspec.get_mapper("lightly://lorries")
    with pytest.raises(FileNotFoundError, match="no dataset of name 'lorries'"):
        look(mapper)


def test_a_mapper_by_its_address_asks_nothing_and_a_key_of_no_dataset_says_why(served: LocalServer) -> None:
    """As mappers of other protocols: fsspec takes FileNotFoundError of a key for a missing key."""
    served.stats.reset()
    mapper = fsspec.get_mapper("lightly://lorries", skip_instance_cache=True)
    assert served.stats.snapshot()["requests"] == {}
    with pytest.raises(KeyError) as missing:
        mapper["0.jpg"]
    year, month = map(int, fsspec.__version__.split(".")[:2])
    if (year, month) >= (2024, 12):  # earlier ones do not pass the cause on
        assert isinstance(missing.value.__cause__, DatasetNotFoundError)


@pytest.mark.parametrize("early", ["check", "create"])
def test_a_mapper_by_its_address_that_is_to_ask_at_once_raises(served: LocalServer, early: str) -> None:
    with pytest.raises(FileNotFoundError, match="no dataset of name 'lorries'"):
        fsspec.get_mapper("lightly://lorries", **{early: True})
    mapper = fsspec.get_mapper("lightly://cars/red", **{early: True})
    assert sorted(mapper) == ["0.jpg", "1.jpg"]


def test_the_configuration_file_counts_where_an_option_does_not_say(
    served: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config/lightlyfs/config.toml"
    file.parent.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("LIGHTLY_SERVER_LOCATION")
    file.write_text(
        f'server = "{served.url}"\n[profiles.work]\ncache_dir = "{tmp_path / "work"}"\nread_only = true\n'
    )
    plain = fsspec.filesystem("lightly", skip_instance_cache=True)
    assert plain.ls("", detail=False) == ["cars"]
    assert plain.cat("cars/red/0.jpg") == b"image"
    assert not (tmp_path / "work").exists()
    work = fsspec.filesystem("lightly", skip_instance_cache=True, profile="work")
    assert work.cat("cars/red/0.jpg") == b"image"
    assert list((tmp_path / "work").iterdir())
    with pytest.raises(OSError, match="read-only"):
        work.pipe("cars/new.jpg", b"new")
    here = fsspec.filesystem("lightly", skip_instance_cache=True, profile="work", read_only=False)
    assert here.ls("cars", detail=False) == ["cars/red"]
    some = fsspec.filesystem("lightly", skip_instance_cache=True, include=["0.*", "*.png"])
    assert some.find("cars") == ["cars/red/0.jpg"]
    with pytest.raises(OSError, match="there is no profile 'wrk'"):
        fsspec.filesystem("lightly", skip_instance_cache=True, profile="wrk").ls("cars")


@pytest.mark.parametrize("cause", ["refused token", "no server"])
def test_datasets_that_cannot_be_listed_say_why(
    served: LocalServer, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    if cause == "refused token":
        monkeypatch.setenv("LIGHTLY_TOKEN", "another")
    else:
        monkeypatch.setattr("lightlyfs.app.resolving.quick_policy", _once)
        monkeypatch.setenv("LIGHTLY_SERVER_LOCATION", f"http://127.0.0.1:{free_port()}")
    fs = fsspec.filesystem("lightly", skip_instance_cache=True)
    with pytest.raises(CAUSES[cause], match=r"does not accept the token|cannot be reached"):
        fs.ls("")


def _once() -> Any:
    from lightlyfs.api.retry import RetryPolicy

    return RetryPolicy(attempts=1, budget_s=1.0)


def test_what_is_not_there_is_said_not_to_be(served: LocalServer) -> None:
    fs = fsspec.filesystem("lightly", skip_instance_cache=True)
    assert fs.find("cars/blue") == []
    assert list(fs.walk("cars/blue")) == []
    assert fs.glob("cars/blue/*") == []
    for path in ("cars/blue", "cars/red/0.jpg/within", "cars/" + "n" * 300):
        assert (fs.exists(path), fs.isdir(path), fs.isfile(path)) == (False, False, False)
    assert (fs.exists("cars/red"), fs.isdir("cars/red"), fs.isfile("cars/red")) == (True, True, False)
    assert (fs.exists("cars/red/0.jpg"), fs.isfile("cars/red/0.jpg")) == (True, True)
    assert fs.exists("")
    with pytest.raises(FileNotFoundError):
        fs.ls("cars/blue")


@pytest.mark.parametrize(
    "failure", [FileNotFoundError(2, "swept"), sqlite3.OperationalError("disk I/O error")]
)
def test_what_is_missing_on_this_machine_is_no_absence(
    served: LocalServer, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """As a cleaner deletes the files of a cache that is being opened, or used."""

    def fails(*_: object, **_options: object) -> Any:
        raise failure

    fs = fsspec.filesystem("lightly", skip_instance_cache=True)
    with monkeypatch.context() as swept:
        swept.setattr("lightlyfs.app.uploading.Spool", fails)
        with pytest.raises(OSError, match=r"swept|disk I/O error") as refused:
            fs.exists("cars/red/0.jpg")
    assert refused.value.errno == errno.EIO
    assert fs.exists("cars/red/0.jpg")


def test_a_catalogue_that_cannot_be_read_is_an_oserror(
    served: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = fsspec.filesystem("lightly", skip_instance_cache=True)
    assert fs.ls("cars", detail=False) == ["cars/red"]

    def fails(*_: object) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("lightlyfs.catalog.store.CatalogStore.lookup_with_next", fails)
    for call in (fs.exists, fs.cat_file, fs.open):
        with pytest.raises(OSError, match="disk I/O error") as refused:
            call("cars/red/0.jpg")
        assert refused.value.errno == errno.EIO


# what is asked of a path below a file
BELOW: dict[str, Call] = {
    "info": lambda fs, at, _: fs.info(at),
    "info deeper": lambda fs, at, _: fs.info(f"{at}/deeper"),
    "ls": lambda fs, at, _: fs.ls(at),
    "open": lambda fs, at, _: fs.open(at),
    "cat": lambda fs, at, _: fs.cat(at),
    "cat_file": lambda fs, at, _: fs.cat_file(at),
    "cat_file of a part": lambda fs, at, _: fs.cat_file(at, 0, 1),
    "modified": lambda fs, at, _: fs.modified(at),
    "write": lambda fs, at, _: fs.pipe_file(at, b"x"),
    "write anew": lambda fs, at, _: fs.open(at, "xb"),
    "append": lambda fs, at, _: fs.open(at, "ab"),
    "touch": lambda fs, at, _: fs.touch(at),
    "put": lambda fs, at, to: fs.put_file(str(to), at),
    "mkdir": lambda fs, at, _: fs.mkdir(at),
    "makedirs": lambda fs, at, _: fs.makedirs(f"{at}/deeper", exist_ok=True),
    "rmdir": lambda fs, at, _: fs.rmdir(at),
    "rm_file": lambda fs, at, _: fs.rm_file(at),
    "mv": lambda fs, at, _: fs.mv(at, at.rpartition("/")[0] + "2"),
    "mv below itself": lambda fs, at, _: fs.mv(at.rpartition("/")[0], at),
    "exists": lambda fs, at, _: fs.exists(at),
    "isfile": lambda fs, at, _: fs.isfile(at),
    "isdir": lambda fs, at, _: fs.isdir(at),
    "find": lambda fs, at, _: fs.find(at),
    "glob": lambda fs, at, _: fs.glob(f"{at}*"),
    "walk": lambda fs, at, _: list(fs.walk(at)),
}


@pytest.mark.parametrize("local", [False, True], ids=["sample", "local file"])
def test_below_a_file_every_call_answers_as_on_the_local_disk(
    served: LocalServer, tmp_path: Path, local: bool
) -> None:
    """A write below a sample would be a sample that no directory can hold."""
    source = tmp_path / "source"
    source.write_bytes(b"x")
    lightly, disk = fsspec.filesystem("lightly", skip_instance_cache=True), fsspec.filesystem("file")
    (tmp_path / "disk/red").mkdir(parents=True)
    (tmp_path / "disk/red/0.jpg").write_bytes(b"image")
    name = "notes.txt" if local else "red/0.jpg"
    if local:
        for fs, root in ((lightly, "cars"), (disk, str(tmp_path / "disk"))):
            fs.pipe_file(f"{root}/{name}", b"x")
    before = [one["fileName"] for one in served.samples()]

    def answer(call: Call, fs: Any, root: str) -> object:
        try:
            return call(fs, f"{root}/{name}/below", source)
        except OSError as error:
            return type(error)

    answers = {what: answer(call, lightly, "cars") for what, call in BELOW.items()}
    assert answers == {what: answer(call, disk, str(tmp_path / "disk")) for what, call in BELOW.items()}
    assert [one["fileName"] for one in served.samples()] == before


def test_a_task_puts_nothing_below_a_file(served: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(NotADirectoryError):
        fsspec.filesystem("lightly", skip_instance_cache=True).put_once(
            tmp_path / "source", "cars/red/0.jpg/below.jpg"
        )
