"""Secrets: signed storage URLs, the API token, and public tokens for redirect links."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote


def derive(secret: bytes, purpose: str) -> bytes:
    """Return a key for one purpose, so that a signature for one purpose is invalid for another."""
    return hmac.new(secret, purpose.encode(), hashlib.sha256).digest()


@dataclass(frozen=True)
class UrlSigner:
    """Signs and checks storage URLs: one method, one key, one expiry.

    Keys are paths as `os.fsdecode` gives them, so any file name can be signed.
    """

    secret: bytes = field(repr=False)
    base_url: str
    lifetime_s: float
    clock: Callable[[], float]

    def sign(self, method: str, key: str) -> str:
        """Return a URL that allows `method` on `key` until it expires."""
        expires = int(self.clock() + self.lifetime_s)
        path = quote(key.encode("utf-8", "surrogateescape"))
        signature = self._signature(method, key, str(expires))
        return f"{self.base_url}/storage/{path}?expires={expires}&method={method}&sig={signature}"

    def is_signed(self, method: str, key: str, expires: str, signature: str) -> bool:
        """Return whether the signature is valid, regardless of the expiry."""
        return same_secret(self._signature(method, key, expires), signature)

    def is_expired(self, expires: str) -> bool:
        """Return whether a signed expiry has passed."""
        return self.clock() >= int(expires)

    def _signature(self, method: str, key: str, expires: str) -> str:
        text = f"{method}\n{expires}\n{key}".encode("utf-8", "surrogateescape")
        return hmac.new(self.secret, text, hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class PublicTokens:
    """Makes and checks the JWTs that redirect links carry; valid for one dataset and nothing else."""

    secret: bytes = field(repr=False)
    dataset_id: str
    clock: Callable[[], float]

    def mint(self, expires_in_s: int | None = None) -> str:
        """Return a token, which does not expire if no lifetime is given."""
        claims: dict[str, object] = {"datasetId": self.dataset_id}
        if expires_in_s is not None:
            claims["exp"] = int(self.clock()) + expires_in_s
        head = _encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        body = _encode(json.dumps(claims).encode())
        return f"{head}.{body}.{self._signature(head, body)}"

    def accepts(self, token: str) -> bool:
        """Return whether this server issued `token` and it has not expired."""
        head, _, rest = token.partition(".")
        body, _, signature = rest.partition(".")
        if not same_secret(self._signature(head, body), signature):
            return False
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return "exp" not in claims or self.clock() < claims["exp"]

    def _signature(self, head: str, body: str) -> str:
        text = f"{head}.{body}".encode("utf-8", "surrogatepass")
        return _encode(hmac.new(self.secret, text, hashlib.sha256).digest())


def same_secret(expected: str, given: str) -> bool:
    """Compare in constant time; `given` may be any text."""
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogatepass"))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
