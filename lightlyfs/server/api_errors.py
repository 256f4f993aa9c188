"""The errors of the server, and the error bodies of the API.

LocalServerError   the server cannot start; the text is one line for the user
ApiError           an error response of the API: status, code of the Lightly error enum, message
"""

import json
import secrets


class LocalServerError(Exception):
    """The server cannot start; the message names the cause and the remedy."""


class ApiError(Exception):
    """An error response of the API, whose body is an ApiErrorResponse document."""

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
    """Return the error for a request that does not match the schema of the API."""
    return ApiError(400, "MALFORMED_REQUEST", error)


def not_found(code: str, what: str) -> ApiError:
    """Return the error for an id that does not exist."""
    return ApiError(404, code, f"{what} does not exist")
