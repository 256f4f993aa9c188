"""`lightlyfs help TOPIC` and `lightlyfs completion SHELL`: texts that are longer than a command's help."""

from __future__ import annotations

from importlib import resources

import click
from click.shell_completion import get_completion_class

from lightlyfs.cli.manual import man_page

_SHELLS = ("bash", "zsh", "fish")


@click.command("help")
@click.argument("topic", type=click.Choice(("semantics", "scale", "man")), required=False)
@click.pass_context
def help_topic(context: click.Context, topic: str | None) -> None:
    """Show a longer text.

    `lightlyfs help semantics` says what the mount promises, `lightlyfs help scale` what millions of samples
    cost. `lightlyfs help man` is the man page; to keep it:
    `lightlyfs help man > ~/.local/share/man/man1/lightlyfs.1`.
    """
    program = context.find_root().command
    assert isinstance(program, click.Group)
    if topic is None:
        click.echo(program.get_help(context.find_root()))
    elif topic == "man":
        click.echo(man_page(program), nl=False)
    else:
        text = resources.files("lightlyfs").joinpath(f"{topic}.md").read_text(encoding="utf-8")
        click.echo_via_pager(text)


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options and their values.

    For bash, put `eval "$(lightlyfs completion bash)"` into ~/.bashrc; for zsh likewise into ~/.zshrc; for
    fish, `lightlyfs completion fish > ~/.config/fish/completions/lightlyfs.fish`.
    """
    made = get_completion_class(shell)
    assert made is not None
    program = context.find_root().command
    click.echo(made(program, {}, "lightlyfs", "_LIGHTLYFS_COMPLETE").source())
