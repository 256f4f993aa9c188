"""The errors a caller can meet, as status, `code` and sentence.

LocalServerError   the server could not start or go on; the text is one line for a person
ApiError           an answer of the API: status, code of the Lightly error enum, sentence
"""

import json
import secrets


class LocalServerError(Exception):
    """The server cannot start; the message names the thing and the way out."""


class ApiError(Exception):
    """A refusal that becomes an ApiErrorResponse body."""

    def __init__(self, status: int, code: str, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.code = code
        self.error = error

    def body(self) -> bytes:
        """Return the JSON body, with a fresh `requestId`."""
        return error_body(self.code, self.error)


def error_body(code: str, error: str) -> bytes:
    """Return an ApiErrorResponse document."""
    return json.dumps({"code": code, "error": error, "requestId": secrets.token_hex(16)}).encode("ascii")


def malformed(error: str) -> ApiError:
    """Return the answer to a request that does not fit the API's schema."""
    return ApiError(400, "MALFORMED_REQUEST", error)


def not_found(code: str, what: str) -> ApiError:
    """Return the answer to an id that names nothing here."""
    return ApiError(404, code, f"{what} does not exist")
