"""S3 servers in this process, and the environment that leads to them."""

import logging
import threading
from contextlib import contextmanager

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.support.counted_store import CountedStore


@contextmanager
def leading_to(endpoint):
    """The environment names a server while the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment(endpoint).items():
            patch.setenv(key, value)
        yield


def environment(endpoint):
    """What leads a process to a server that checks no signature."""
    known = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1", "DEFAULT_REGION": "us-east-1", "ENDPOINT_URL": endpoint}
    return {f"AWS_{key}": value for key, value in known.items()}


@contextmanager
def s3_bucket(name):
    """A client of a server with one bucket; the environment names the server while the block runs."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    with leading_to(endpoint):
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket=name)
        try:
            yield client
        finally:
            client.close()
            server.stop()


@contextmanager
def counted_store():
    """A server that counts what is asked of it; the environment names it while the block runs."""
    server = CountedStore()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with leading_to(f"http://127.0.0.1:{server.server_address[1]}"):
            yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
