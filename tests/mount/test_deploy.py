"""The files of `lightlyfs deploy` that no program here can run: whether they hold what their readers need.

The board is compared with what a mount exports. Images and pods are checked for syntax, and for the fields
without which a mount is not seen; what engines ran by hand is said at the head of each file.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import yaml
from trees import environment, free_port, lightlyfs, need_fuse, start_mount

from lightlyfs.cli.mount import mount
from lightlyfs.testing import LocalServer


def printed(name: str) -> str:
    """One of the files."""
    return lightlyfs("deploy", name, environ=os.environ).stdout


@pytest.fixture
def exported(own_server: LocalServer, tmp_path: Path) -> str:
    """What a mount answers to Prometheus."""
    need_fuse("3")
    own_server.add_sample("a.bin", b"a")
    (tmp_path / "mnt").mkdir()
    port = free_port()
    tree = start_mount(
        own_server.dataset_id, tmp_path / "mnt", environment(own_server, tmp_path / "cache"),
        tmp_path / "mount.log", f"--metrics-port={port}",
    )  # fmt: skip
    try:
        tree.read("a.bin")
        return requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text
    finally:
        tree.end()


@pytest.mark.fuse
def test_the_board_shows_each_metric_of_a_mount_and_no_other(exported: str) -> None:
    board = json.loads(printed("grafana"))
    shown = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"lightlyfs_\w+", target["expr"])
    }
    families = dict(re.findall(r"^# TYPE (lightlyfs_\w+) (\w+)$", exported, re.MULTILINE))
    assert {name.removesuffix("_bucket") for name in shown} == set(families)
    assert {name for name in shown if name.endswith("_bucket")} == {
        f"{name}_bucket" for name, kind in families.items() if kind == "histogram"
    }


def test_the_board_is_laid_out_and_asks_the_data_source_that_is_chosen() -> None:
    board = json.loads(printed("grafana"))
    variables = {one["name"]: one["type"] for one in board["templating"]["list"]}
    assert variables == {"datasource": "datasource", "instance": "query"}
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


# instructions of a Containerfile that ours uses, and what follows each
INSTRUCTIONS = {
    "FROM": r"\S+( AS \w+)?",
    "RUN": r"\S.*",
    "COPY": r"(--from=\w+ )?\S+ /\S*",
    "ENV": r"\w+=\S+",
    "VOLUME": r"/\S+",
    "EXPOSE": r"\d+",
    "STOPSIGNAL": r"SIG[A-Z]+",
    "ENTRYPOINT": r"\[.*\]",
}


def test_the_containerfile_is_made_of_instructions_that_fit() -> None:
    text = re.sub(r"^#.*\n", "", printed("containerfile"), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.partition(" ") for line in text.splitlines() if line.strip()]
    assert lines[0][0] == "FROM"
    for instruction, _, rest in lines:
        assert re.fullmatch(INSTRUCTIONS[instruction], rest), f"{instruction} {rest}"
    stages = [rest.split(" AS ")[1] for name, _, rest in lines if name == "FROM" and " AS " in rest]
    used = [
        match[1] for name, _, rest in lines if name == "COPY" and (match := re.match(r"--from=(\w+)", rest))
    ]
    assert used == stages == ["build"]
    for _, _, rest in (line for line in lines if line[0] == "RUN"):
        shlex.split(rest)
    assert [name for name, _, _ in lines].count("ENTRYPOINT") == 1
    entry = json.loads({name: rest for name, _, rest in lines}["ENTRYPOINT"])
    assert_mounts([*entry, "dataset", "/mnt/images"])


def test_the_composed_service_hands_the_mount_on_and_is_waited_for() -> None:
    made = yaml.safe_load(printed("compose"))
    sidecar, program = made["services"]["lightlyfs"], made["services"]["program"]
    given, seen = sidecar["volumes"][0], program["volumes"][0]
    assert given["source"] == seen["source"]
    assert (given["bind"]["propagation"], seen["bind"]["propagation"]) == ("rshared", "rslave")
    assert sidecar["devices"] == ["/dev/fuse"]
    assert program["depends_on"]["lightlyfs"]["condition"] == "service_healthy"
    assert set(made["secrets"]) == {one["source"] for one in sidecar["secrets"]}
    assert sidecar["volumes"][1].split(":")[0] in made["volumes"]
    file = next(line for line in printed("containerfile").splitlines() if line.startswith("ENTRYPOINT"))
    entry = json.loads(file.partition(" ")[2])
    assert f"--token-file={sidecar['secrets'][0]['target']}" in entry
    assert_mounts([*entry, *sidecar["command"]])
    assert sidecar["healthcheck"]["test"][1:] == ["lightlyfs", "status", sidecar["command"][1]]
    # those that docker-compose 1.29 and podman-compose know; with another they refuse the file
    assert set(sidecar["healthcheck"]) <= {"test", "interval", "timeout", "retries", "start_period"}
    assert sidecar["restart"] == "on-failure"


# what an engine makes of `rshared` for the one that mounts and `rslave` for the one that reads
_SIDECAR = """
set -e
mount --bind "$1" "$1"
mount --make-rshared "$1"
unshare -m --propagation unchanged -- "$2" -m lightlyfs mount "$3" "$1/images" --read-only --fuse=3
unshare -m --propagation slave -- sh -c 'cat "$1/images/a.bin"; mountpoint -q "$1/images"' - "$1"
"$2" -m lightlyfs umount "$1/images"
"""


@pytest.mark.fuse
def test_what_a_sidecar_mounts_is_seen_by_the_program_beside_it(
    own_server: LocalServer, tmp_path: Path
) -> None:
    """In namespaces as an engine makes them; an outer one sees to it that nothing is left."""
    need_fuse("3")
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare of util-linux")
    own_server.add_sample("a.bin", b"from the sidecar")
    (tmp_path / "mounts/images").mkdir(parents=True)
    words = [str(tmp_path / "mounts"), sys.executable, own_server.dataset_id]
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", _SIDECAR, "-", *words],
        env=environment(own_server, tmp_path / "cache"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "from the sidecar"), done.stderr


def test_the_pod_hands_the_mount_on_and_waits_for_it() -> None:
    pod = yaml.safe_load(printed("kubernetes"))
    assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")
    (sidecar,), (program,) = pod["spec"]["initContainers"], pod["spec"]["containers"]
    volumes = {one["name"]: one for one in pod["spec"]["volumes"]}
    mounts = {one["name"]: one for one in sidecar["volumeMounts"]}
    assert set(mounts) == set(volumes)
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["securityContext"]["privileged"] is True
    assert mounts["mounts"]["mountPropagation"] == "Bidirectional"
    (seen,) = program["volumeMounts"]
    assert (seen["name"], seen["mountPropagation"]) == ("mounts", "HostToContainer")
    assert volumes["token"]["secret"]["defaultMode"] == 0o400

    shell, flag, script, name = sidecar["command"]
    assert (shell, flag, name) == ("sh", "-c", "lightlyfs")
    command = shlex.split(script.partition("exec ")[2].replace('"$@"', shlex.join(sidecar["args"])))
    assert_mounts(command)
    dataset, mountpoint = sidecar["args"][:2]
    assert dataset == "my-dataset"
    assert mountpoint.startswith(seen["mountPath"] + "/")
    assert f"mkdir -p {mountpoint}" in script
    for probe in ("startupProbe", "readinessProbe"):
        assert sidecar[probe]["exec"]["command"] == ["lightlyfs", "status", mountpoint]
    assert sidecar["lifecycle"]["preStop"]["exec"]["command"] == ["lightlyfs", "umount", mountpoint]
    token = next(word for word in command if word.startswith("--token-file=")).partition("=")[2]
    assert token == mounts["token"]["mountPath"] + "/token"


def assert_mounts(command: list[str]) -> None:
    """The words are a command that `lightlyfs mount` takes, and stay in the foreground."""
    assert command[:2] == ["lightlyfs", "mount"]
    context = mount.make_context("mount", list(command[2:]))
    assert context.params["foreground"]
    assert context.params["mountpoint"].is_absolute()


@pytest.mark.parametrize("name", ["containerfile", "compose"])
def test_a_file_of_engines_says_which_ran_it(name: str) -> None:
    assert re.search(r"[Rr]un with (podman|docker) \d", printed(name).split("\n\n")[0])


def test_the_pod_says_that_no_cluster_ran_it() -> None:
    assert "no cluster has run it" in " ".join(
        printed("kubernetes").split("\n\n")[0].replace("#", "").split()
    )


def test_the_command_of_the_containerfile_mounts_below_what_is_bound() -> None:
    """Bound itself, a folder with a dead mount keeps an engine from starting the container again."""
    head = printed("containerfile").split("\n\n")[0]
    lines = re.search(r"podman run .*?--allow-other", head.replace("#", "").replace("\\\n", ""), re.DOTALL)
    assert lines
    words = shlex.split(lines[0])
    bound = dict(part.split("=") for part in words[words.index("--mount") + 1].split(","))
    assert bound["bind-propagation"] == "rshared"
    _, mountpoint = words[words.index("lightlyfs", words.index("-v")) + 1 :][:2]
    assert Path(mountpoint).parent == Path(bound["target"])
    assert f"mkdir -p {bound['source']}/{Path(mountpoint).name}" in head
