"""`python -m lightlyfs.testing`: the test server as a command."""

import argparse
import sys
from pathlib import Path

from lightlyfs.server import LocalServerError, serve_until_signal
from lightlyfs.server.serve_options import URL_LIFETIME_S

from .local_server import LocalServer, ServerOptions


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    flags = argparse.ArgumentParser(
        prog="python -m lightlyfs.testing",
        description="A Lightly API over a folder, a bucket, or made-up samples.",
    )
    flags.add_argument("source", nargs="?", metavar="DIR|s3://BUCKET/PREFIX")
    flags.add_argument("--host", default="127.0.0.1")
    flags.add_argument("--port", type=int, default=0, help="0: any free port")
    flags.add_argument("--public-url", help="the address clients use, if it differs")
    flags.add_argument("--token", help="the API token (made up if not given)")
    flags.add_argument(
        "--state", type=Path, metavar="DIR", help="keep samples, tags and tokens here (else in memory)"
    )
    flags.add_argument("--dataset-id", help="24 hex digits (derived from the source if not given)")
    flags.add_argument("--dataset-name")
    flags.add_argument("--url-lifetime", type=float, default=URL_LIFETIME_S, metavar="S")
    flags.add_argument("--s3-endpoint", metavar="URL")
    flags.add_argument("--s3-public-endpoint", metavar="URL", help="what signed URLs lead to, if it differs")
    flags.add_argument("--fake", type=int, metavar="N", help="serve N made-up samples")
    flags.add_argument("--fake-size", type=int, default=100_000, metavar="B")
    flags.add_argument("--fake-per-dir", type=int, default=1000, metavar="N", help="0: all in one directory")
    flags.add_argument("--latency", type=float, default=0.0, metavar="S", help="delay every request")
    flags.add_argument("--page-size-max", type=int, metavar="N", help="clamp pages, as a service might")
    flags.add_argument("--verbose", action="store_true", help="log each request, without its secrets")
    return flags


def options_from(arguments: list[str]) -> ServerOptions:
    """Return the options that the arguments give."""
    given = parser().parse_args(arguments)
    return ServerOptions(
        source=given.source,
        host=given.host,
        port=given.port,
        public_url=given.public_url,
        token=given.token,
        state=given.state,
        dataset_id=given.dataset_id,
        dataset_name=given.dataset_name,
        url_lifetime_s=given.url_lifetime,
        s3_endpoint=given.s3_endpoint,
        s3_public_endpoint=given.s3_public_endpoint,
        fake_samples=given.fake,
        fake_bytes=given.fake_size,
        fake_per_directory=given.fake_per_dir or None,
        page_size_max=given.page_size_max,
        api_latency_s=given.latency,
        storage_latency_s=given.latency,
        verbose=given.verbose,
    )


def main() -> int:
    """Run the command and return its exit code."""
    options = options_from(sys.argv[1:])
    try:
        serve_until_signal(lambda: LocalServer(options))
    except LocalServerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
