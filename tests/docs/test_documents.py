"""The documents: short, without dead ends, and with an entry for every error."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from docs_kit import DOCUMENTS, README, ROOT, lines_to_run
from error_texts import texts

from lightlyfs.cli.group import commands
from lightlyfs.cli.help import TOPICS

MAX_README_WORDS = 900
MAX_PICTURE_BYTES = 150_000
ORDER = [
    *(
        "Quick start",
        "Install",
        "Try it without an account",
        "Before you write",
        "Everyday commands",
        "Recipes",
    ),
    *("Troubleshooting", "How it differs", "Speed", "Security", "Licence", "Contributing"),
]
LINK = re.compile(r"\]\(([^)#]+)\)")


def test_the_readme_is_short_and_in_order() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) <= MAX_README_WORDS
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ORDER


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_link_is_dead(path: Path) -> None:
    links = LINK.findall(path.read_text(encoding="utf-8"))
    dead = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert dead == []


def test_pictures_are_small_and_the_readme_has_two() -> None:
    """A file manager over a mount, and the chart of the speed."""
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert shown == ["tests/docs/file-manager.png", "tests/bench/results.png"]
    pictures = [ROOT / shown[0], *(ROOT / "tests/docs").glob("*.png")]
    assert [path for path in pictures if path.stat().st_size > MAX_PICTURE_BYTES] == []


def test_a_link_to_a_topic_names_the_command_too() -> None:
    """On the page of a package index a relative link leads nowhere."""
    text = " ".join(README.read_text(encoding="utf-8").split())
    linked = re.findall(r"lightlyfs/docs/([a-z-]+)\.md", text)
    assert [topic for topic in linked if f"`lightlyfs help {topic}`" not in text] == []
    assert {"options", "semantics", "uploads", "speed", "scale", "service", "python"} <= set(linked)


def test_every_topic_is_a_document_that_says_its_command() -> None:
    assert {path.stem for path in DOCUMENTS if path.parent.name == "docs"} == set(TOPICS)
    for topic in TOPICS:
        text = (ROOT / f"lightlyfs/docs/{topic}.md").read_text(encoding="utf-8")
        assert topic == "scale" or f"`lightlyfs help {topic}` prints this text." in text


def test_troubleshooting_has_every_error_text_and_no_other() -> None:
    text = (ROOT / "lightlyfs/docs/troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (.+)$", text, re.MULTILINE)
    told = texts()
    assert [f"{told[one]}: {one}" for one in sorted(set(told) - set(headings))] == []
    assert sorted(set(headings) - set(told)) == []
    assert len(headings) == len(set(headings))


def test_every_call_of_the_client_is_in_the_table_of_the_api() -> None:
    text = (ROOT / "lightlyfs/docs/api-coverage.md").read_text(encoding="utf-8")
    module = ast.parse((ROOT / "lightlyfs/api/client.py").read_text(encoding="utf-8"))
    calls = [
        node.name
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef) and "API: " in (ast.get_docstring(node) or "")
    ]
    assert len(calls) > 15
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(calls)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_command_in_a_sentence_is_one_that_there_is(path: Path) -> None:
    """Those in blocks are run; these have at least a command and options that exist."""
    text = " ".join(path.read_text(encoding="utf-8").split())
    wrong = []
    for line in re.findall(r"`lightlyfs ([a-z][^`]*)`", text):
        words = [word.rstrip(",") for word in line.split()]
        context = commands.make_context("lightlyfs", [], resilient_parsing=True)
        command = commands.get_command(context, words[0])
        for word in words[1:]:
            if command is not None and hasattr(command, "commands") and word in command.commands:
                command = command.commands[word]
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        known = {flag for one in command.params for flag in one.opts} if command else set()
        if command is None or set(flags) - known - {"--help"}:
            wrong.append(line)
    assert wrong == []


def test_lines_that_are_not_run_have_a_reason() -> None:
    assert all(reason for _, reason in lines_to_run(README).left_out)
