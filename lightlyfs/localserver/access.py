"""Who may call what: the API token, and the public token for redirect links only."""

from .asgi import Call
from .errors import ApiError, not_found
from .params import object_id
from .signing import PublicTokens, same_secret


def refused(error: str) -> ApiError:
    """Return the answer to a call without a valid token."""
    return ApiError(401, "UNAUTHORIZED", error)


class Access:
    """Checks of one dataset's server. Reads only, so any task may call it."""

    def __init__(self, token: str, public_tokens: PublicTokens, dataset_id: str) -> None:
        self._token = token
        self._public_tokens = public_tokens
        self._dataset_id = dataset_id

    def anyone(self, call: Call) -> None:
        """Let everyone in: version checks need no token."""

    def with_token(self, call: Call) -> None:
        """Require the API token, as `token=` or as a bearer."""
        given = call.query.get("token")
        header = call.header(b"authorization") or ""
        bearer = header[7:] if header[:7].lower() == "bearer " else None
        if given is None and bearer is None:
            raise refused("a token is required: `token` in the query or `Authorization: Bearer`")
        if not any(same_secret(self._token, one) for one in (given, bearer) if one is not None):
            raise refused("the token is not valid")

    def for_dataset(self, call: Call) -> None:
        """Require the API token and an id of this dataset."""
        self.with_token(call)
        self._check_ids(call)

    def for_redirect(self, call: Call) -> None:
        """Require a public token; the API token is not accepted here."""
        token = call.query.get("publicToken")
        if token is None or not self._public_tokens.accepts(token):
            raise refused("a valid publicToken is required")
        self._check_ids(call)

    def _check_ids(self, call: Call) -> None:
        dataset_id = object_id(call.path["datasetId"], "datasetId")
        if "sampleId" in call.path:
            object_id(call.path["sampleId"], "sampleId")
        if dataset_id != self._dataset_id:
            raise not_found("DATASET_UNKNOWN", f"dataset {dataset_id}")
