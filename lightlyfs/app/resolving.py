"""Finds a dataset by id or by name: in the API or, without a network, in the records of an earlier mount."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lightlyfs import places
from lightlyfs.api.client import LightlyClient
from lightlyfs.api.models import DatasetRecord
from lightlyfs.api.retry import RetryPolicy
from lightlyfs.app.connections import QUICK_DOUBT_S, quick_policy
from lightlyfs.errors import (
    Forbidden,
    LightlyFsError,
    MalformedAnswer,
    NoSuchDataset,
    NotFound,
    Refused,
    RequestError,
    Retryable,
    StartError,
    TlsFailed,
    Unauthorized,
)
from lightlyfs.settings import Secrets, Settings

log = logging.getLogger(__name__)

_ID = re.compile(r"[a-f0-9]{24}")
# with a stored catalogue a mount need not wait for the network
_STORED_WAIT_S = 0.5


@dataclass(frozen=True)
class FoundDataset:
    """The dataset to mount."""

    id: str
    name: str


def find_dataset(
    client: LightlyClient,
    settings: Settings,
    secrets: Secrets,
    wanted: str,
    say: Callable[[str], object],
    *,
    trusts_stored: bool = False,
) -> FoundDataset:
    """Return the dataset of this id or name; StartError says in one line why there is none.

    `say` is called with one line where an earlier mount's answer has to do. With `trusts_stored` that is
    taken without asking, where its catalogue is there.
    """
    root = places.server_cache(settings.cache_dir, settings.server)
    names = _Names(root / "names.json", secrets)
    stored = names.id_of(wanted)
    has_catalogue = (
        stored is not None
        and (root / stored / places.catalogue_name(settings.tag)).exists()
        and not settings.no_cache
    )
    if trusts_stored and has_catalogue:
        assert stored is not None
        return FoundDataset(stored, wanted)
    policy = (
        RetryPolicy(attempts=1, budget_s=_STORED_WAIT_S, doubt_s=QUICK_DOUBT_S)
        if has_catalogue
        else quick_policy()
    )
    try:
        found = _ask(client, wanted, policy)
    except LightlyFsError as error:
        if has_catalogue and isinstance(error, Retryable):
            say(f"{_reason(error, settings)}; the names of an earlier mount are shown")
            assert stored is not None
            return FoundDataset(stored, wanted)
        raise _start_error(error, settings, wanted) from error
    names.remember(wanted, found.id)
    return found


def known_names(settings: Settings, secrets: Secrets) -> list[str]:
    """The names of datasets that were met before with this token; asks nothing of the network."""
    return _Names(places.server_cache(settings.cache_dir, settings.server) / "names.json", secrets).names()


def list_datasets(client: LightlyClient, settings: Settings) -> list[DatasetRecord]:
    """Return every dataset that the token may see; StartError says in one line why that cannot be said."""
    try:
        return _twice_if_empty(lambda: client.list_datasets(policy=quick_policy()))
    except LightlyFsError as error:
        raise _start_error(error, settings, "") from error


def _ask(client: LightlyClient, wanted: str, policy: RetryPolicy) -> FoundDataset:
    by_id = _ID.fullmatch(wanted) is not None
    if by_id:
        try:
            return _found(client.get_dataset(wanted, policy=policy))
        except NotFound as error:
            if error.status != 404:
                raise
    found = _twice_if_empty(lambda: client.find_datasets(wanted, policy=policy))
    if len(found) > 1:
        ids = ", ".join(dataset.id for dataset in found)
        raise StartError(f"{len(found)} datasets are called {wanted!r}; mount one by its id: {ids}")
    if not found:
        kind = "id or name" if by_id else "name"
        raise NoSuchDataset(
            f"no dataset of {kind} {wanted!r} can be seen with this token; `lightlyfs datasets` lists those "
            "that can"
        )
    return _found(found[0])


def _twice_if_empty(ask: Callable[[], list[DatasetRecord]]) -> list[DatasetRecord]:
    """Ask once more after an empty list: one empty answer is doubted, like one refusal."""
    return ask() or ask()


def _found(dataset: DatasetRecord) -> FoundDataset:
    return FoundDataset(dataset.id, dataset.name or dataset.id)


def _reason(error: LightlyFsError, settings: Settings) -> str:
    return f"{settings.server} cannot be reached ({cause_of(error)})"


def cause_of(error: LightlyFsError) -> str:
    """Return the reason of an error, without the request that its text begins with."""
    text = str(error)
    request, colon, cause = text.partition(": ")
    return cause if colon and request.startswith(("GET ", "POST ", "PUT ")) else text


def _start_error(error: LightlyFsError, settings: Settings, wanted: str) -> StartError:
    return error if isinstance(error, StartError) else StartError(_start_text(error, settings, wanted))


def _start_text(error: LightlyFsError, settings: Settings, wanted: str) -> str:
    if isinstance(error, Unauthorized):
        return f"{settings.server} does not accept the token; check LIGHTLY_TOKEN (or --token-file)"
    if "response 407" in str(error) or (isinstance(error, RequestError) and error.status == 407):
        return (
            "the proxy does not accept its user name and password (407); check them in HTTPS_PROXY and "
            "HTTP_PROXY"
        )
    if isinstance(error, Forbidden):
        what = f"dataset {wanted!r}" if wanted else "datasets"
        return f"the token may not read {what}; ask its owner to share it, or use another token"
    if isinstance(error, TlsFailed):
        cause = cause_of(error)
        if "wrong version number" in cause:
            return f"{settings.server} does not speak TLS; if that is right, use http:// instead"
        return (
            f"the certificate of {settings.server} is not trusted: {cause} (lightlyfs help troubleshooting)"
        )
    answered = isinstance(error, RequestError) and error.status == 200
    if answered or isinstance(error, (MalformedAnswer, NotFound, Refused)):
        cause = cause_of(error)
        return (
            f"{settings.server} does not answer like the Lightly API ({cause}); check LIGHTLY_SERVER_LOCATION"
        )
    if isinstance(error, Retryable):
        return (
            f"{_reason(error, settings)}; check the network, the proxy variables and LIGHTLY_SERVER_LOCATION "
            "(lightlyfs help troubleshooting)"
        )
    return str(error)


class _Names:
    """Names of datasets met before; each counts only for the token it was found with."""

    def __init__(self, path: Path, secrets: Secrets) -> None:
        self._path = path
        self._fingerprint = secrets.fingerprint("names")
        self._known: dict[str, str] = {}
        with suppress(OSError, ValueError, RecursionError):
            found = json.loads(path.read_text(encoding="utf-8"))
            self._known = found if isinstance(found, dict) else {}

    def id_of(self, wanted: str) -> str | None:
        found = self._known.get(f"{self._fingerprint}/{wanted}")
        return found if isinstance(found, str) and _ID.fullmatch(found) else None

    def names(self) -> list[str]:
        """Those that are names, not ids, for completion."""
        begin = f"{self._fingerprint}/"
        known = {key.removeprefix(begin) for key in self._known if key.startswith(begin)}
        return sorted(name for name in known if not _ID.fullmatch(name))

    def remember(self, wanted: str, dataset_id: str) -> None:
        if self.id_of(wanted) == dataset_id:
            return
        self._known[f"{self._fingerprint}/{wanted}"] = dataset_id
        try:
            places.replace_file(self._path, json.dumps(self._known))
        except OSError as error:
            log.warning("the name of the dataset cannot be remembered: %s", error)
