"""`lightlyfs serve`: a Lightly API of one's own, over a folder or a bucket."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lightlyfs.errors import SettingsError, StartError

if TYPE_CHECKING:
    from lightlyfs.server import ServeOptions
    from lightlyfs.testing import LocalServer


def _seconds(text: str) -> float:
    """Return a number of seconds; click's FloatRange accepts NaN."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise click.BadParameter(f"{text!r} is not a number of seconds, 0 or more")
    return found


@click.command()
@click.argument("source", required=False)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port; 0 takes any that is free.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--token", help="The API token to ask for [a new one].")
@click.option("--dataset-name", help="What the dataset is called [after the folder].")
@click.option(
    "--state", type=click.Path(path_type=Path), help="Directory that remembers samples and tags [memory]."
)
@click.option("--s3-endpoint", help="Address of the S3 service of an s3:// source.")
@click.option("--s3-public-endpoint", help="Its address for clients, if that is another one.")
@click.option(
    "--url-lifetime", type=_seconds, metavar="SECONDS", help="Seconds for which signed URLs are good [3600]."
)
@click.option(
    "--latency", type=_seconds, default=0.0, metavar="SECONDS", help="Seconds to add to every answer."
)
@click.option("--fake", type=click.IntRange(1), metavar="N", help="Make up N samples instead of a source.")
@click.option(
    "--fake-size",
    type=click.IntRange(0),
    default=100_000,
    show_default=True,
    help="Bytes of each made-up sample.",
)
@click.option(
    "--fake-per-dir",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="Files a directory; 0 for one directory.",
)
@click.option("--verbose", is_flag=True, help="Log each request, without its secrets.")
def serve(
    source: str | None,
    port: int,
    host: str,
    token: str | None,
    dataset_name: str | None,
    state: Path | None,
    s3_endpoint: str | None,
    s3_public_endpoint: str | None,
    url_lifetime: float | None,
    latency: float,
    fake: int | None,
    fake_size: int,
    fake_per_dir: int,
    verbose: bool,
) -> None:
    """Serve SOURCE, a folder or s3://BUCKET/PREFIX, as a Lightly API until interrupted.

    Once ready, prints four lines that set the environment of `lightlyfs mount`.
    """
    # imported here: the server is heavy, and no other command needs it
    from lightlyfs.server import ApiServer, LocalServerError, ServeOptions, serve_until_signal

    if (source is None) == (fake is None):
        raise SettingsError("name one source: a folder, s3://BUCKET/PREFIX, or --fake N")
    options = ServeOptions(
        source=source,
        port=port,
        host=host,
        token=token,
        dataset_name=dataset_name,
        state=state,
        s3_endpoint=s3_endpoint,
        s3_public_endpoint=s3_public_endpoint,
        verbose=verbose,
    )
    if url_lifetime is not None:
        options = replace(options, url_lifetime_s=url_lifetime)

    def create() -> ApiServer:
        if fake is None and latency <= 0:
            return ApiServer(options)
        return _server_for_tests(options, latency, fake, fake_size, fake_per_dir or None)

    try:
        serve_until_signal(create)
    except LocalServerError as error:
        raise StartError(str(error)) from None


def _server_for_tests(
    options: ServeOptions, latency_s: float, samples: int | None, file_bytes: int, per_directory: int | None
) -> LocalServer:
    try:
        from lightlyfs.testing import LocalServer, ServerOptions
    except ModuleNotFoundError:
        raise StartError(
            "--fake and --latency are for tests: run them from a clone of the repository"
        ) from None
    return LocalServer(
        ServerOptions(
            **vars(options),
            api_latency_s=latency_s,
            storage_latency_s=latency_s,
            fake_samples=samples,
            fake_bytes=file_bytes,
            fake_per_directory=per_directory,
        )
    )
