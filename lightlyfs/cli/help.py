"""Commands that print what comes with the package: `help` and the man page, `completion`, `deploy`."""

from __future__ import annotations

import shutil
import sys
import time
from difflib import get_close_matches
from importlib import metadata, resources
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from lightlyfs.settings import SETTINGS, Setting

_SHELLS = ("bash", "zsh", "fish")
_DOCS = resources.files("lightlyfs").joinpath("docs")
TOPICS = tuple(sorted(path.name.removesuffix(".md") for path in _DOCS.iterdir()))


def _topics_and_commands(
    context: click.Context, _parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    program = context.find_root().command
    assert isinstance(program, click.Group)
    known = (*TOPICS, "man", *program.list_commands(context))
    return [CompletionItem(name) for name in known if name.startswith(begun)]


@click.command("help")
@click.argument("topic", required=False, shell_complete=_topics_and_commands)
@click.pass_context
def help_topic(context: click.Context, topic: str | None) -> None:
    """Show a longer text, or the help of a command.

    `lightlyfs help semantics` says what the mount promises, `lightlyfs help troubleshooting` what to do about
    each error. `lightlyfs help man` is the man page; to keep it:
    `lightlyfs help man > ~/.local/share/man/man1/lightlyfs.1`.
    """
    program = context.find_root().command
    assert isinstance(program, click.Group)
    if topic is None:
        click.echo(program.get_help(context.find_root()))
        click.echo(f"\nTopics of `lightlyfs help`: {', '.join((*TOPICS, 'man'))}")
    elif topic == "man":
        click.echo(man_page(program), nl=False)
    elif (command := program.get_command(context, topic)) is not None:
        with click.Context(command, parent=context.find_root(), info_name=topic) as its_own:
            click.echo(command.get_help(its_own))
    elif topic not in TOPICS:
        known = (*TOPICS, "man", *program.list_commands(context))
        close = get_close_matches(topic, known, 1)
        asked = f"did you mean {close[0]}?" if close else f"there are {', '.join(TOPICS)} and the commands"
        raise click.UsageError(f"no such topic {topic!r}; {asked}", context)
    else:
        _show(_DOCS.joinpath(f"{topic}.md").read_text(encoding="utf-8"))


def _show(text: str) -> None:
    """Show a text in a pager on a terminal, as it is elsewhere."""
    if not sys.stdout.isatty():
        click.echo(text, nl=False)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    with console.pager(styles=True):
        console.print(Markdown(text))


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS), metavar="SHELL")
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that makes a shell complete commands, options and values; SHELL is bash, zsh or fish.

    For bash, put `eval "$(lightlyfs completion bash)"` into ~/.bashrc; for zsh likewise into ~/.zshrc; for
    fish, `lightlyfs completion fish > ~/.config/fish/completions/lightlyfs.fish`.
    """
    made = get_completion_class(shell)
    assert made is not None
    program = context.find_root().command
    click.echo(made(program, {}, "lightlyfs", "_LIGHTLYFS_COMPLETE").source())


# `lightlyfs deploy NAME`: files that run a mount as a service

# name on the command line: file in lightlyfs/deploy
_DEPLOY_FILES = {
    "system-unit": "system-unit.service",
    "user-unit": "user-unit.service",
    "containerfile": "Containerfile",
    "compose": "compose.yaml",
    "kubernetes": "kubernetes.yaml",
    "grafana": "grafana.json",
}


@click.command()
@click.argument("name", type=click.Choice(tuple(_DEPLOY_FILES)), metavar="NAME")
def deploy(name: str) -> None:
    """Print a file that runs a mount as a service; its first lines say how to use it.

    system-unit and user-unit are for systemd, with the path of this program in them; containerfile is for
    an image, compose and kubernetes have a sidecar that mounts; grafana is a dashboard of the metrics of
    --metrics-port.
    """
    text = resources.files("lightlyfs").joinpath("deploy", _DEPLOY_FILES[name]).read_text(encoding="utf-8")
    if name.endswith("-unit"):
        # systemd looks in the system's own directories only, where a virtual environment is not
        text = text.replace("=lightlyfs ", f"={_program()} ")
    click.echo(text, nl=False)


def _program() -> str:
    beside = Path(sys.executable).with_name("lightlyfs")
    return str(beside) if beside.exists() else shutil.which("lightlyfs") or "lightlyfs"


# the man page, made from the help of the commands and the table of settings


def man_page(program: click.Group) -> str:
    """The page in roff's man macros; its date is that of the day it is made."""
    version = metadata.version("lightlyfs")
    date = time.strftime("%Y-%m-%d")
    lines = [
        f'.TH LIGHTLYFS 1 {date} "lightlyfs {version}"',
        ".SH NAME",
        r"lightlyfs \- mount a Lightly dataset as a folder of images",
        ".SH SYNOPSIS",
    ]
    context = click.Context(program)
    found = {name: program.get_command(context, name) for name in sorted(program.list_commands(context))}
    commands = {name: command for name, command in found.items() if command is not None}
    for name, command in commands.items():
        lines += [f".B lightlyfs {_plain(name)}", _plain(_usage(command)), ".br"]
    lines += [".SH DESCRIPTION", _text(program.help or ""), ".SH COMMANDS"]
    for name, command in commands.items():
        lines += [".TP", f".B {_plain(name)}", _text(command.help or "")]
        lines += _options(command)
    lines += [".SH OPTIONS OF MOUNT", "Each also works as", r".BR \-o \ name=value ,", "as in /etc/fstab."]
    for row in SETTINGS:
        lines += [".TP", f".B {_plain(row.flag)}", _text(_described(row))]
    lines += [
        ".SH ENVIRONMENT",
        _text(
            "LIGHTLY_TOKEN (or LIGHTLY_BEARER_TOKEN) is the API token, LIGHTLY_PUBLIC_TOKEN that of"
            " --read-mode redirect. The usual proxy variables are honoured, NO_PROXY too."
        ),
        ".SH FILES",
        _text(
            "Cached blocks, names and signed addresses are in the user's cache directory, files that are"
            " still to be uploaded in the user's state directory; with --cache-dir both are there."
        ),
        ".SH EXIT STATUS",
        _text("0 is success, 1 a failure reported in one line, 2 a wrong argument, 130 an interruption."),
        ".SH SEE ALSO",
        ".BR mount (8),",
        ".BR fstab (5),",
        _text("and `lightlyfs help semantics` for what a mount promises."),
    ]
    return "\n".join(lines) + "\n"


def _usage(command: click.Command) -> str:
    pieces = ["[OPTIONS]"] if any(isinstance(one, click.Option) for one in command.params) else []
    pieces += [
        one.make_metavar(click.Context(command)) for one in command.params if isinstance(one, click.Argument)
    ]
    if isinstance(command, click.Group):
        pieces.append("|".join(sorted(command.commands)))
    return " ".join(pieces)


def _options(command: click.Command) -> list[str]:
    """The options of a command, as a nested list; without those of the settings' table."""
    of_table = {row.flag for row in SETTINGS}
    lines = [".RS"]
    for option in command.params:
        if isinstance(option, click.Option) and option.help and not of_table & set(option.opts):
            lines += [".TP", f".B {_plain(', '.join(option.opts))}", _text(option.help)]
    return [*lines, ".RE"] if len(lines) > 1 else []


def _described(row: Setting) -> str:
    choices = f" One of {', '.join(row.choices)}." if row.choices else ""
    default = "" if row.default in (None, "", "off") else f" Default: {row.default}."
    variable = f" Also {row.variable}." if row.variable else ""
    return row.help + choices + default + variable


def _text(text: str) -> str:
    """Text as a paragraph: each of its own a line, nothing in it a request."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return "\n.br\n".join(_plain(part) for part in paragraphs if part)


def _plain(text: str) -> str:
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return r"\&" + escaped if escaped.startswith((".", "'")) else escaped
