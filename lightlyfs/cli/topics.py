"""`lightlyfs help TOPIC`: texts that are longer than a command's help."""

from __future__ import annotations

from importlib import resources

import click

_TOPICS = ("semantics",)


@click.command("help")
@click.argument("topic", type=click.Choice(_TOPICS), required=False)
@click.pass_context
def help_topic(context: click.Context, topic: str | None) -> None:
    """Show a longer text: `lightlyfs help semantics` says what the mount promises."""
    if topic is None:
        parent = context.parent
        click.echo(parent.get_help() if parent else "")
        return
    text = resources.files("lightlyfs").joinpath(f"{topic}.md").read_text(encoding="utf-8")
    click.echo_via_pager(text)
