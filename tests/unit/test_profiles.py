"""The configuration file and its profiles: what beats what, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lightlyfs import profiles
from lightlyfs.cli.options import config, misspelt_variables
from lightlyfs.errors import SettingsError

FILE = """
cache_size = "50G"
jobs = 8
[profiles.work]
server = "https://work.example"
read_only = true
upload = ["*.jpg", "!raw/*"]
jobs = 4
[profiles.train]
jobs = 16
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Write the configuration file of a user who has set no variable."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in (profiles.VARIABLE, "LIGHTLY_SERVER_LOCATION"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "lightlyfs").mkdir()
    return lambda text: (tmp_path / "lightlyfs/config.toml").write_text(text) and None


def test_given_beats_variable_beats_profile_beats_file(write: Callable[[str], None]) -> None:
    write(FILE)
    assert profiles.beneath({}, None, {}) == {"cache_size": "50G", "jobs": "8"}
    found = profiles.beneath({"jobs": "2"}, "work", {})
    assert found == {
        "cache_size": "50G",
        "jobs": "2",
        "server": "https://work.example",
        "read_only": "on",
        "upload": "*.jpg,!raw/*",
    }
    assert "server" not in profiles.beneath({}, "work", {"LIGHTLY_SERVER_LOCATION": "https://other"})
    assert profiles.beneath({}, None, {profiles.VARIABLE: "work"})["jobs"] == "4"


def test_two_profiles_are_there_without_a_file(write: Callable[[str], None]) -> None:
    assert profiles.beneath({}, "train", {})["read_only"] == "on"
    assert profiles.beneath({}, "browse", {})["metadata_ttl"] == "5m"
    write(FILE)
    train = profiles.beneath({}, "train", {})
    assert (train["read_only"], train["jobs"]) == ("on", "16")  # a file may change them


@pytest.mark.parametrize(
    ("text", "profile", "said"),
    [
        ("", "wrok", "there is no profile 'wrok'; .*have browse, train"),
        ("a = [", None, "is not TOML"),
        ("speed = 11", None, "unknown setting speed; `lightlyfs help options` lists them"),
        ("cache-siz = 11", None, "unknown setting cache-siz; did you mean cache_size"),
        ("[profile.work]", None, r"profile is a table; profiles begin with \[profiles.NAME\]"),
        ("profiles = 3", "work", "profiles are tables; begin each with"),
        ("[profiles]\nwork = 3", "work", "profiles are tables; begin each with"),
        ("jobs = true", None, "jobs is 'true'; expected a whole number"),
        ("tag = true", None, "tag is true; expected a text"),
        ("thumbnails = true", None, "thumbnails is 'true'; it may be prefill, on-demand, off"),
        ("read_only = []", None, "read_only is a list; expected one value"),
        ('upload = ["*.jpg", 3]', None, "upload is a list; expected texts in it"),
        ("umask = 0o077", None, 'umask is a number; write it with quotes, such as "022"'),
        ('token = "abc"', None, "a token does not belong there"),
    ],
)
def test_a_wrong_file_is_refused_by_name(
    write: Callable[[str], None], text: str, profile: str | None, said: str
) -> None:
    write(text)
    with pytest.raises(SettingsError, match=said) as caught:
        profiles.load(profile)
    assert "config.toml" in str(caught.value)
    assert "abc" not in str(caught.value)


def test_show_says_where_each_value_is_from(
    write: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(FILE)
    monkeypatch.setenv("LIGHTLYFS_FUSE", "3")
    command = config.commands["show"]
    assert isinstance(command, click.Command)
    done = CliRunner().invoke(command, ["--json", "--profile", "work", "--umask", "077"])
    assert done.exit_code == 0, done.output
    origins = {one["name"]: one["origin"] for one in json.loads(done.output)}
    assert origins["umask"] == "option --umask"
    assert origins["fuse"] == "variable LIGHTLYFS_FUSE"
    assert origins["server"].endswith("config.toml, profile work")
    assert origins["cache_size"].endswith("config.toml")
    assert origins["gid"] == "default"


def test_a_wrong_value_is_named_with_its_file_where_nothing_beats_it(write: Callable[[str], None]) -> None:
    write('jobs = "many"\nserver = "x"\n[profiles.work]\njobs = "few"')
    address = {"LIGHTLY_SERVER_LOCATION": "https://other"}
    with pytest.raises(SettingsError, match=r"config\.toml: jobs is 'many'; expected a whole number"):
        profiles.beneath({}, None, address)
    with pytest.raises(SettingsError, match=r"config\.toml, profile work: jobs is 'few'; expected"):
        profiles.beneath({}, "work", address)
    assert profiles.beneath({"jobs": "2"}, None, address) == {"jobs": "2"}


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("read_ahead = false", "read_ahead", "off"),
        ("no_cache = true", "no_cache", "on"),
        ("s3_sse_kms_key = true", "s3_sse_kms_key", "true"),
        ("s3_sse_kms_key = false", "s3_sse_kms_key", ""),
        ("metadata_ttl = inf", "metadata_ttl", "inf"),
        (
            'allow_private_storage = ["10.0.0.0/8", "127.0.0.0/8"]',
            "allow_private_storage",
            "10.0.0.0/8,127.0.0.0/8",
        ),
    ],
)
def test_a_value_of_the_file_is_one_of_an_option(
    write: Callable[[str], None], text: str, name: str, value: str
) -> None:
    write(text)
    assert profiles.beneath({}, None, {}) == {name: value}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LIGHTLYFS_CACHE_SIZ", "did you mean --cache-size (cache_size in config.toml)?"),
        ("LIGHTLYFS_CACHE_MIN_FRE", "did you mean LIGHTLYFS_CACHE_MIN_FREE?"),
        ("LIGHTLYFS_PROFIL", "did you mean LIGHTLYFS_PROFILE?"),
        ("LIGHTLYFS_TOKEN", "did you mean LIGHTLY_TOKEN?"),
        ("LIGHTLYFS_SERVER_LOCATION", "did you mean LIGHTLY_SERVER_LOCATION?"),
        ("LIGHTLYFS_METRICS_PORT", "did you mean --metrics-port (metrics_port in config.toml)?"),
    ],
)
def test_a_variable_that_only_looks_like_one_of_ours_is_named(name: str, meant: str) -> None:
    assert misspelt_variables({name: "1", "HOME": "/"}) == [f"the variable {name} has no effect; {meant}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LIGHTLYFS_FUSE", "3"),
        (profiles.VARIABLE, "train"),
        ("LIGHTLYFS_CACHE_SIZ", ""),
        ("LIGHTLY_CACHE_SIZE", "1"),
        ("LIGHTLYFS_REQUIRE_FUSE", "1"),
        ("LIGHTLYFS_METRICS_SERVICE_HOST", "10.0.0.1"),
        ("LIGHTLYFS_METRICS_SERVICE_PORT", "9100"),
        ("LIGHTLYFS_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("LIGHTLYFS_METRICS_PORT", "tcp://10.0.0.1:80"),
    ],
)
def test_variables_that_count_and_those_of_others_are_not_named(name: str, value: str) -> None:
    assert misspelt_variables({name: value}) == []


def test_a_command_names_such_a_variable_on_stderr_once(write: Callable[[str], None]) -> None:
    shown = CliRunner().invoke(config, ["show", "--json"], env={"LIGHTLYFS_CACHE_SIZ": "5G"})
    assert shown.stderr.count("LIGHTLYFS_CACHE_SIZ") == shown.stderr.count("\n") == 1
    assert json.loads(shown.stdout)
