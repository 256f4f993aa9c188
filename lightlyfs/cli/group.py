"""The commands by name, each imported when it is run, and the exit code of a run."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

from lightlyfs.api.redaction import visible
from lightlyfs.cli.options import TOKEN_REFUSAL, CommandGroup
from lightlyfs.errors import LightlyFsError, SettingsError

_COMPLETING = "_LIGHTLYFS_COMPLETE"
# how people try to pass a token; we have no such option, because arguments of a program are public
_TOKEN_FLAGS = {"--token", "--api-token", "--bearer-token", "--public-token"}
_MOUNT_HELPER = "mount.fuse.lightlyfs"
# flags that mount(8) hands on to its helper: sloppy, no mtab, verbose
_MOUNT_FLAGS = {"-s", "-n", "-v"}
# its message is the help; click 8.1 shows that by itself
_NO_ARGUMENTS: type[click.UsageError] | tuple[()] = getattr(click.exceptions, "NoArgsIsHelpError", ())
# where each command is; most need little of what the others import
_COMMANDS = {
    "mount": "mount:mount",
    "umount": "commands:umount",
    "status": "commands:status",
    "datasets": "without_mount:datasets",
    "ls": "without_mount:ls",
    "cat": "without_mount:cat",
    "cp": "without_mount:cp",
    "warm": "cache:warm",
    "cache": "cache:cache",
    "refresh": "commands:refresh",
    "mounts": "commands:mounts",
    "log": "commands:log",
    "config": "options:config",
    "uploads": "uploads:uploads",
    "index": "without_mount:index",
    "serve": "serve:serve",
    "demo": "demo:demo",
    "deploy": "help:deploy",
    "doctor": "doctor:doctor",
    "completion": "help:completion",
    "help": "help:help_topic",
}


class _Commands(CommandGroup):
    """A group whose commands are imported when they are asked for."""

    way_out = "a dataset is mounted by: lightlyfs mount DATASET DIR"

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[name].partition(":")
        found: click.Command = getattr(import_module(f"lightlyfs.cli.{module}"), attribute)
        return found


class _Line(logging.Formatter):
    """A warning of the parts below, in the form of the other lines for a person."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return f"lightlyfs: {visible(record.message)}"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lightlyfs", message="%(prog)s %(version)s")
def commands() -> None:
    """Mount a Lightly dataset as a folder of images.

    `lightlyfs DATASET DIR -o OPTIONS`, the form that mount(8) uses, is the same as `lightlyfs mount`.
    """


def run(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    if _COMPLETING in os.environ:
        # the shell asks for what may come next; click answers, and ends the program
        commands.main([], prog_name="lightlyfs", complete_var=_COMPLETING)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Line())
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and os.path.basename(sys.argv[0]) == _MOUNT_HELPER:
        words = _words_of_mount(words)
    if _is_form_of_mount(words):
        words.insert(0, "mount")
    try:
        code = commands.main(words, prog_name="lightlyfs", standalone_mode=False)
    except click.UsageError as error:
        _show_usage_error(error)
        code = 2
    except click.ClickException as error:
        click.echo(f"lightlyfs: {visible(_plain(error.format_message()))}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except LightlyFsError as error:
        click.echo(f"lightlyfs: {visible(str(error))}", err=True)
        code = 2 if isinstance(error, SettingsError) else 1
    except BrokenPipeError:
        # the reader closed the pipe; the interpreter would report that again when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        click.echo(f"lightlyfs: {_text_of(error)}", err=True)
        code = 1
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})"
        click.echo(f"lightlyfs: this is a fault of lightlyfs, please report it: {visible(told)}", err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _is_form_of_mount(words: Sequence[str]) -> bool:
    """Whether these are the words of mount(8), `DATASET DIR -o OPTIONS`: they have no command."""
    options = any(word.startswith("-o") for word in words[2:])
    return options and not words[0].startswith("-") and words[0] not in _COMMANDS


def _show_usage_error(error: click.UsageError) -> None:
    if isinstance(error, _NO_ARGUMENTS):
        error.show()
        return
    text = _plain(error.format_message())
    if isinstance(error, click.NoSuchOption):
        close = " or ".join(error.possibilities or ())
        text = f"no such option {error.option_name}" + (f"; did you mean {close}?" if close else "")
        if error.option_name in _TOKEN_FLAGS:
            text = TOKEN_REFUSAL
    click.echo(f"lightlyfs: {visible(text)}", err=True)
    if error.ctx is not None and error.ctx.parent is not None:
        usage = " ".join(error.ctx.get_usage().split()).removeprefix("Usage: ")
        click.echo(f"usage: {usage}  (see {error.ctx.command_path} --help)", err=True)


def _plain(text: str) -> str:
    """A message of click in our form: one line, a small first letter, no full stop."""
    text = " ".join(text.split()).removesuffix(".")
    return text[:1].lower() + text[1:]


def _text_of(error: OSError) -> str:
    """What failed, and with which file; the system names none for a removed working directory."""
    if isinstance(error, FileNotFoundError) and not error.filename:
        try:
            os.getcwd()
        except FileNotFoundError:
            return "the current directory was removed; change to another one and run the command again"
    return visible(str(error))


def _words_of_mount(words: list[str]) -> list[str]:
    """Convert the arguments of mount(8)'s helper to a command; its `-f` asks for a dry run."""
    if "-f" in words:
        sys.exit(0)
    return ["mount", *(word for word in words if word not in _MOUNT_FLAGS)]
