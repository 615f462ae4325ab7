"""An S3 server of this machine for tests, moto's, and the environment that leads any S3 client to it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

BUCKET = "bucket"


@contextmanager
def s3(address: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """A server at `address` with an empty bucket while the context lasts; gives the variables for who is to use it.

    One for each process: fsspec's file systems keep the endpoint that they first saw.
    """
    import fsspec
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(address, port=0)
    server.start()
    host, port = server.get_host_and_port()
    environ = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    store = fsspec.filesystem("s3", key="test", secret="test", endpoint_url=environ["AWS_ENDPOINT_URL"])
    store.mkdir(BUCKET)
    try:
        yield environ
    finally:
        server.stop()
