"""Objects in an S3 bucket: the server lists them, clients access them through presigned URLs."""

import os
from collections.abc import Iterator
from typing import Any

from .api_errors import LocalServerError
from .storage import RESERVED, ListedObject

LIFETIME_MAX_S = 7 * 24 * 3600
"""The limit of SigV4."""


def parse_s3_url(url: str) -> tuple[str, str]:
    """Return bucket and prefix (without slashes at its ends) of `s3://bucket/prefix`."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise LocalServerError(f"{url} names no bucket: use s3://BUCKET or s3://BUCKET/PREFIX")
    return bucket, prefix.strip("/")


class S3Storage:
    """A bucket as `Storage`; clients transfer the bytes without this server. Any thread may use it."""

    def __init__(self, url: str, endpoint: str | None, lifetime_s: float) -> None:
        self._bucket, prefix = parse_s3_url(url)
        self._prefix = f"{prefix}/" if prefix else ""
        self._lifetime_s = max(1, min(int(lifetime_s), LIFETIME_MAX_S))
        self._client = s3_client(endpoint)

    def scan(self) -> Iterator[ListedObject]:
        """Yield every object below the prefix except those of `.lightly`, sorted by key."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix
        )
        found = []
        try:
            for page in pages:
                for item in page.get("Contents", ()):
                    name = item["Key"].removeprefix(self._prefix)
                    if name and not name.endswith("/") and not name.startswith(f"{RESERVED}/"):
                        changed_ms = int(item["LastModified"].timestamp() * 1000)
                        found.append(ListedObject(name, name, item["Size"], changed_ms))
        except Exception as error:
            raise LocalServerError(f"cannot list s3://{self._bucket}/{self._prefix}: {error}") from error
        found.sort(key=lambda one: one.key)
        yield from found

    def accepts(self, key: str) -> bool:
        """Return False if the key exists or is not printable."""
        return key.isprintable() and not self.exists(key)

    def exists(self, key: str) -> bool:
        """Return whether the bucket has the object."""
        try:
            self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except self._client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return False
            raise
        return True

    def read_bytes(self, key: str) -> bytes | None:
        """Return the object, or None."""
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
        except self._client.exceptions.NoSuchKey:
            return None
        body: bytes = answer["Body"].read()
        return body

    def write_bytes(self, key: str, data: bytes) -> None:
        """Store an object."""
        self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data)

    def read_url(self, key: str) -> str:
        """Return a presigned GET URL."""
        return self._presigned("get_object", key)

    def write_url(self, key: str) -> str:
        """Return a presigned PUT URL."""
        return self._presigned("put_object", key)

    def location(self, name: str) -> str:
        """Return the s3:// URL of the name."""
        return f"s3://{self._bucket}/{self._prefix}{name}"

    def _presigned(self, operation: str, key: str) -> str:
        params = {"Bucket": self._bucket, "Key": self._prefix + key}
        url: str = self._client.generate_presigned_url(operation, Params=params, ExpiresIn=self._lifetime_s)
        return url


def s3_client(endpoint: str | None) -> Any:
    """Return a boto3 client; endpoints other than AWS get path-style addresses, which all of them support."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise LocalServerError("serving a bucket needs boto3; install it with: pip install boto3") from error
    style = {"addressing_style": "path" if endpoint else "auto"}
    # newer botocore signs a checksum header into PUT URLs, which a client with only the URL cannot send
    config = Config(
        signature_version="s3v4",
        s3=style,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    try:
        # a new session, because the default session of boto3 keeps the first credentials it reads
        return boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except Exception as error:
        raise LocalServerError(f"cannot set up S3 access: {error}") from error
