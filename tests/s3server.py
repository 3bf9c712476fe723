"""An S3 server (moto) in threads of this process, and the environment that leads to it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
_FOREIGN = ("AWS_", "AZURE_", "GOOGLE_")


@dataclass(frozen=True, slots=True)
class Store:
    """A server that runs."""

    endpoint: str
    client: Any
    """Of boto3."""

    def put(self, bucket: str, key: str, content: bytes) -> str:
        """Store an object, in a bucket that is made where there is none; its URL."""
        if bucket not in {known["Name"] for known in self.client.list_buckets()["Buckets"]}:
            self.client.create_bucket(Bucket=bucket)
        self.client.put_object(Bucket=bucket, Key=key, Body=content)
        return f"s3://{bucket}/{key}"


@contextmanager
def serve_s3(files: Mapping[str, bytes] | None = None, bucket: str = "imagery") -> Iterator[Store]:
    """Run a server while the block runs, with `AWS_*` set so that everything in this process reads from it.

    Args:
        files: key -> content, put into `bucket` at once.
        bucket: Made where `files` are given.
    """
    import boto3
    from botocore.config import Config
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    try:
        with patch.dict(os.environ, clean | values, clear=True):
            client = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
            store = Store(values["AWS_ENDPOINT_URL"], client)
            for key, content in (files or {}).items():
                store.put(bucket, key, content)
            yield store
            client.close()
    finally:
        server.stop()
