"""What the server tests share: a folder with known bytes, and a thin client with no mercy for odd answers."""

from pathlib import Path
from typing import Any

import requests

from lightlyfs.testing import LocalServer

FILES = {
    "a/one.jpg": b"first image",
    "a/two.png": b"",
    "b/c/deep.bin": bytes(range(256)) * 8,
    "big.bin": bytes(i * 7 % 251 for i in range(3_000_000)),
    "sp ace%2F#?+ü.jpg": b"odd but plain",
}
ERROR_KEYS = {"code", "error", "requestId"}


def fill(folder: Path) -> Path:
    """Write `FILES` and something in `.lightly`, which is no sample."""
    for name, data in {**FILES, ".lightly/thumbnails/old": b"t"}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


class Api:
    """Requests to one server; the token goes along unless told otherwise."""

    def __init__(self, server: LocalServer) -> None:
        self.server = server
        self.session = requests.Session()
        self.samples = f"/v1/datasets/{server.dataset_id}/samples"
        self.dataset = f"/v1/datasets/{server.dataset_id}"

    def call(self, method: str, path: str, token: bool = True, **options: Any) -> requests.Response:
        """Return the raw answer; redirects are not followed."""
        params = dict(options.pop("params", {}))
        if token:
            params["token"] = self.server.token
        url = self.server.url + path
        return self.session.request(method, url, params=params, timeout=10, allow_redirects=False, **options)

    def json(self, path: str, **params: Any) -> Any:
        """GET and return the document of a 200."""
        answer = self.call("GET", path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def create(self, name: str, **fields: Any) -> str:
        """Create a sample and return its id."""
        answer = self.call("POST", self.samples, json={"fileName": name, **fields})
        assert answer.status_code == 201, answer.text
        assert set(answer.json()) == {"id"}
        return str(answer.json()["id"])

    def read_url(self, sample_id: str, **params: Any) -> str:
        """Return a signed GET URL."""
        return str(self.json(f"{self.samples}/{sample_id}/readurl", **params))

    def write_url(self, sample_id: str, thumbnail: bool = False) -> str:
        """Return a signed PUT URL."""
        return str(self.json(f"{self.samples}/{sample_id}/writeurl", isThumbnail=thumbnail))

    def id_of(self, name: str) -> str:
        """Return the id of the first sample with this name."""
        return next(one["id"] for one in self.server.samples() if one["fileName"] == name)

    def refused(self, status: int, code: str, method: str, path: str, **options: Any) -> str:
        """Expect an error body and return its sentence."""
        answer = self.call(method, path, **options)
        assert answer.status_code == status, answer.text
        assert set(answer.json()) == ERROR_KEYS
        assert answer.json()["code"] == code
        return str(answer.json()["error"])
