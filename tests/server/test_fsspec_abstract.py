"""fsspec's own suite for file systems, over `lightly://`.

Two things are done for it that a user does not have. It removes files all the time, which the API cannot:
here what was removed is hidden until it is written again. And it writes over files, for which a mount has to
be asked: `allow_overwrite`.
"""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec.tests.abstract as suite
import pytest
from trees import environment

from lightlyfs.fsspec import driver as fsspec_driver
from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.testing import LocalServer, ServerOptions

if not hasattr(suite, "AbstractOpenTests"):
    pytest.skip("the suite of this fsspec is a smaller one", allow_module_level=True)

_numbers = itertools.count()


class _RemovingFileSystem(fsspec_driver.LightlyFileSystem):
    """Hides what was removed, until it is written again."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._removed: set[str] = set()

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        self._removed.update(self.expand_path(path, recursive=recursive, maxdepth=maxdepth))

    def _is_removed(self, path: str) -> bool:
        while path and path not in self._removed:
            path = self._parent(path)
        return bool(path)

    def _show(self, path: str) -> None:
        while path:
            self._removed.discard(path)
            path = self._parent(path)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path)
        if self._is_removed(path):
            raise FileNotFoundError(path)
        found = [one for one in super().ls(path, **kwargs) if not self._is_removed(one["name"])]
        return found if detail else [one["name"] for one in found]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if self._is_removed(path):
            raise FileNotFoundError(path)
        return super().info(path, **kwargs)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        was_removed = self._is_removed(path)
        self._show(path)
        super().makedirs(path, exist_ok=exist_ok or was_removed)

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        if mode == "rb" and self._is_removed(path):
            raise FileNotFoundError(path)
        was_removed = self._is_removed(path)
        self._show(path)
        return super()._open(path, "wb" if was_removed and mode == "xb" else mode, *args, **kwargs)


@pytest.fixture(scope="module")
def file_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_RemovingFileSystem]:
    """An empty dataset called `suite`."""
    home = tmp_path_factory.mktemp("fsspec")
    (home / "served").mkdir()
    options = ServerOptions(source=home / "served", dataset_name="suite")
    with LocalServer(options) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(server, home / "home").items():
            if name.startswith(("LIGHTLY", "XDG")):
                patch.setenv(name, value)
        yield _RemovingFileSystem(cache_dir=str(home / "cache"), allow_overwrite=True)
        fsspec_parts.close_all()


class _Fixtures(suite.AbstractFixtures):
    @pytest.fixture
    def fs(self, file_system: _RemovingFileSystem) -> _RemovingFileSystem:
        return file_system

    @pytest.fixture
    def fs_path(self, fs: Any) -> str:
        return f"suite/{next(_numbers)}"

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return posixpath.join

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return True


class TestCopy(_Fixtures, suite.AbstractCopyTests):
    pass


class TestGet(_Fixtures, suite.AbstractGetTests):
    pass


class TestPut(_Fixtures, suite.AbstractPutTests):
    pass


class TestOpen(_Fixtures, suite.AbstractOpenTests):
    pass


class TestPipe(_Fixtures, suite.AbstractPipeTests):
    pass


def test_the_suite_has_no_further_part() -> None:
    """A part that is added to it should be run here too."""
    parts = {name for name in dir(suite) if name.startswith("Abstract") and name.endswith("Tests")}
    assert parts == {f"Abstract{name}Tests" for name in ("Copy", "Get", "Open", "Pipe", "Put")}
    assert Path(suite.__file__).exists()
