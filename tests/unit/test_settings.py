"""Settings: where they come from, what is refused, and that `docs/options.md` lists every one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightlyfs.cli.options import GROUPS
from lightlyfs.errors import SettingsError
from lightlyfs.fsspec.driver import LightlyFileSystem
from lightlyfs.library import mount
from lightlyfs.settings import (
    BY_NAME,
    DEFAULT_SERVER,
    SETTINGS,
    Secrets,
    exposure_of,
    read_secrets,
    resolve,
    text_of,
)

OPTIONS = Path(__file__).parents[2] / "lightlyfs/docs/options.md"


def row_of(name: str) -> str:
    """The row of a setting."""
    setting = BY_NAME[name]
    default = "" if setting.default in (None, "") or name in ("uid", "gid") else f"`{setting.default}`"
    variable = f" Also `{setting.variable}`." if setting.variable else ""
    return f"| `{setting.flag}` | {default} | {setting.help}{variable} |"


def test_the_text_on_options_lists_every_setting_as_it_is() -> None:
    text = OPTIONS.read_text(encoding="utf-8")

    assert [row_of(s.name) for s in SETTINGS if row_of(s.name) not in text] == []


def test_each_setting_has_one_heading() -> None:
    named = [name for _, names in GROUPS for name in names]
    assert sorted(named) == sorted(BY_NAME)


def test_the_defaults_are_resolved() -> None:
    settings = resolve({}, {})

    assert settings.server == DEFAULT_SERVER
    assert settings.metadata_ttl_s == 60
    assert settings.umask == 0o022
    assert (settings.read_only, settings.cache_dir, settings.cache_size_bytes) == (False, None, None)


def test_a_flag_beats_a_variable_and_a_variable_beats_the_default() -> None:
    environ = {"LIGHTLY_SERVER_LOCATION": " https://one.example/ "}

    assert resolve({}, environ).server == "https://one.example"
    assert resolve({"server": "https://two.example"}, environ).server == "https://two.example"
    assert resolve({"server": None}, {"LIGHTLY_SERVER_LOCATION": ""}).server == DEFAULT_SERVER


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("metadata_ttl", "infinite", "metadata_ttl_s", float("inf")),
        ("metadata_ttl", "0", "metadata_ttl_s", 0.0),
        ("metadata_ttl", "1.5s", "metadata_ttl_s", 1.5),
        ("cache_size", "20G", "cache_size_bytes", 20 << 30),
        ("cache_size", "512 MiB", "cache_size_bytes", 512 << 20),
        ("cache_size", "1.5t", "cache_size_bytes", 3 << 39),
        ("cache_min_free", "2G", "cache_min_free_bytes", 2 << 30),
        ("cache_min_free", "0", "cache_min_free_bytes", 0),
        ("metadata_ttl", "5m", "metadata_ttl_s", 300.0),
        ("metadata_ttl", "1h30m", "metadata_ttl_s", 5_400.0),
        ("metadata_ttl", "1h 30min 5s", "metadata_ttl_s", 5_405.0),
        ("metadata_ttl", "indefinite", "metadata_ttl_s", float("inf")),
        ("uid", "root", "uid", 0),
        ("gid", "root", "gid", 0),
        ("umask", "0o077", "umask", 0o077),
        ("umask", "077", "umask", 0o077),
        ("no_cache", "on", "no_cache", True),
        ("no_cache", "", "no_cache", True),
        ("no_cache", "no", "no_cache", False),
        ("jobs", "7", "jobs", 7),
    ],
)
def test_a_text_becomes_a_value(name: str, text: str, field: str, value: object) -> None:
    assert getattr(resolve({name: text}, {}), field) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata_ttl", "-1"),
        ("metadata_ttl", "nan"),
        ("metadata_ttl", "soon"),
        ("metadata_ttl", "5x"),
        ("metadata_ttl", ""),
        ("metadata_ttl", "9" * 5_000 + "x"),
        ("cache_size", "0"),
        ("cache_size", "1M"),
        ("cache_size", "0%"),
        ("cache_size", "101%"),
        ("jobs", "100000"),
        ("jobs", "²"),
        ("uid", "no-such-user"),
        ("uid", "9" * 5_000),
        ("gid", ""),
        ("cache_size", "much"),
        ("cache_size", "-5"),
        ("jobs", "0"),
        ("jobs", "two"),
        ("umask", "999"),
        ("umask", "1777"),
        ("uid", "-1"),
        ("server", "api.lightly.ai"),
        ("server", "ftp://x"),
        ("read_mode", "fast"),
        ("fuse", "4"),
        ("no_cache", "maybe"),
        ("cache_dir", ""),
        ("ca_certs", "/no/such/file"),
        ("cache_dir", "~no-such-user/x"),
        ("cache_dir", "a\0b"),
        ("cache_size", "9" * 400 + "T"),
        ("cache_min_free", "9999999T"),
        ("memory_target", "9" * 30),
        ("uid", str((1 << 32) - 1)),
        ("gid", str((1 << 32) - 1)),
        ("metrics_port", "²"),
        ("server", "https://x.example?y"),
        ("server", "https://x.example/#y"),
    ],
)
def test_a_wrong_text_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"^{BY_NAME[name].flag} is ") as caught:
        resolve({name: text}, {})
    assert "something else" not in str(caught.value)


@pytest.mark.parametrize("name", ["cache_size", "cache_min_free"])
@pytest.mark.parametrize("chosen", [True, False], ids=["--cache-dir", "XDG_CACHE_HOME"])
def test_a_share_is_one_of_the_disk_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chosen: bool
) -> None:
    place = tmp_path / "not/yet"
    asked = []

    def statvfs(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(f_blocks=1_000, f_frsize=4_096 << 10)

    monkeypatch.setattr(os, "statvfs", statvfs)
    flags, environ = ({"cache_dir": str(place)}, {}) if chosen else ({}, {"XDG_CACHE_HOME": str(place)})
    found = resolve({name: "50%", **flags}, environ)
    assert getattr(found, f"{name}_bytes") == 500 * 4_096 << 10
    assert asked == [tmp_path]


@pytest.mark.parametrize("name", ["allow_overwrite", "write_back", "sole_writer"])
@pytest.mark.parametrize("other", [{"read_only": "on"}, {"tag": "night"}])
def test_options_that_contradict_each_other_are_refused(name: str, other: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=f"^{BY_NAME[name].flag} contradicts --"):
        resolve({name: "on", **other}, {})


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(SettingsError, match="unknown option speed"):
        resolve({"speed": "11"}, {})


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert resolve({"cache_dir": "cache"}, {}).cache_dir == tmp_path / "cache"


def test_a_token_file_beats_the_variable(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")

    assert read_secrets({"LIGHTLY_TOKEN": "from-variable"}, file).token == "from-file"
    assert read_secrets({"LIGHTLY_TOKEN": "from-variable"}, None).token == "from-variable"


@pytest.mark.parametrize(
    ("mode", "is_exposed"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)]
)
def test_a_token_file_that_others_can_read_is_closed_by_the_command_named(
    tmp_path: Path, mode: int, is_exposed: bool
) -> None:
    file = tmp_path / "my token"
    file.write_text("secret")
    file.chmod(mode)
    said = exposure_of(file)
    assert (said is not None) == is_exposed
    if said:
        subprocess.run(["sh", "-c", said.partition("with: ")[2]], check=True)
        assert exposure_of(file) is None
    assert exposure_of(None) is None
    assert exposure_of(tmp_path / "missing") is None


def test_blanks_around_a_token_are_cut() -> None:
    assert read_secrets({"LIGHTLY_TOKEN": "  abc\r\n"}, None).token == "abc"
    with pytest.raises(SettingsError, match="no API token"):
        read_secrets({"LIGHTLY_TOKEN": " \n"}, None)


def test_a_bearer_token_is_enough() -> None:
    assert read_secrets({"LIGHTLY_BEARER_TOKEN": "b"}, None) == Secrets(None, "b", None)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe", "is not text"),
        (b"# mine\nabc\n", "holds more than a token"),
        (b"abc\r\ndef\r\n", "holds more than a token"),
        (b"LIGHTLY_TOKEN=abc\n", "holds more than a token"),
        (b'"abc"\n', "holds more than a token"),
    ],
)
def test_a_useless_token_file_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)

    with pytest.raises(SettingsError, match=f"token file .* {why}"):
        read_secrets({}, file)


def test_a_byte_order_mark_is_no_part_of_a_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes("abc\r\n".encode("utf-8-sig"))
    assert read_secrets({}, file).token == "abc"


def test_secrets_show_nothing() -> None:
    assert "hunter2" not in repr(Secrets("hunter2", "hunter2", None))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("read_only", True, "on"),
        ("read_only", False, "off"),
        ("thumbnails", False, "off"),
        ("s3_sse_kms_key", True, "true"),
        ("s3_sse_kms_key", False, ""),
        ("jobs", 8, "8"),
        ("metadata_ttl", float("inf"), "inf"),
        ("include", ("*.jpg", "cars/*"), "*.jpg,cars/*"),
        ("cache_dir", Path("/a b"), "/a b"),
        ("cache_dir", b"/a b", "/a b"),
    ],
)
def test_a_value_of_a_program_is_the_text_of_an_option(name: str, value: object, text: str) -> None:
    assert text_of(BY_NAME[name], value, name) == text
    resolve({name: text}, {})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("jobs", True, "jobs is 'true'; expected a whole number from 1 to 1024"),
        ("tag", True, "tag is true; expected a text"),
        ("thumbnails", True, "thumbnails is 'true'; it may be prefill, on-demand, off"),
        ("umask", 0o077, 'umask is a number; write it with quotes, such as "022"'),
        ("cache_dir", ["/a", "/b"], "cache_dir is a list; expected one value"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(name: str, value: object, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        text_of(BY_NAME[name], value, name)
    assert str(caught.value) == said
    with pytest.raises(SettingsError, match=f"^{name} is "):
        mount("my-dataset", "/nowhere", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^{name} is "):
        LightlyFileSystem(**{name: value}, skip_instance_cache=True)
