"""A local S3 server."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any, NamedTuple

import pytest


class S3Server(NamedTuple):
    """A running local S3 server."""

    client: Any
    requests: deque[str]
    """Lines of the server log, one per request."""


@contextmanager
def serving() -> Iterator[S3Server]:
    """Run an S3 server in a separate process, with its address and credentials in the environment variables."""
    import boto3

    with subprocess.Popen(
        [sys.executable, "-c", "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as server, pytest.MonkeyPatch.context() as patch:  # fmt: skip
        try:
            assert server.stderr is not None
            url = next(line.split(" on ")[1].split()[0] for line in server.stderr if " on http://" in line)
            requests: deque[str] = deque(maxlen=10_000)  # thread-safe
            Thread(target=requests.extend, args=[server.stderr], daemon=True).start()
            for name, value in {
                "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "not-to-be-logged",
                "AWS_DEFAULT_REGION": "us-east-1",
            }.items():  # fmt: skip
                patch.setenv(name, value)
            yield S3Server(boto3.client("s3"), requests)
        finally:
            server.terminate()
