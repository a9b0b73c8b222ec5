"""An S3 server of this machine's own, and a door in front of it that fails on demand.

The server is moto's, in a process of its own, spoken to by the real client of pyarrow over TCP.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from pyarrow import fs

BUCKET = "bucket"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}

Fault = Literal["503", "reset", "truncated"]


def uri(port: int, path: str) -> str:
    """The URI of a folder in the bucket of the server that listens at a port."""
    return f"s3://{BUCKET}/{path}?scheme=http&endpoint_override=127.0.0.1:{port}"


@contextlib.contextmanager
def server() -> Iterator[int]:
    """Run an S3 server with an empty bucket within the block; gives its port."""
    os.environ.update(CREDENTIALS)  # as a node has them; every process of a test inherits them
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import logging, sys; logging.disable(); from moto.server import main; main(sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", code, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert process.poll() is None and time.monotonic() < deadline, "the S3 server does not start"
                time.sleep(0.05)
            options = {"region": "us-east-1", "scheme": "http", "endpoint_override": f"127.0.0.1:{port}"}
            fs.S3FileSystem(**options, allow_bucket_creation=True, request_timeout=60).create_dir(BUCKET)
            yield port
        finally:
            process.kill()


class Door(ThreadingHTTPServer):
    """Passes requests on to a server, except for those that it is told to fail."""

    daemon_threads = True

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), _Passage)
        self.server = port
        self.port = self.server_address[1]
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request, in order."""
        self.failed = 0
        self._left = 0
        self._fault: Fault = "503"
        self._chosen: Callable[[str, str], bool] = lambda method, path: True
        self._lock = threading.Lock()

    def fail(self, times: int, fault: Fault, chosen: Callable[[str, str], bool] = lambda method, path: True) -> None:
        """Fail the next so many of those requests whose method and path are chosen."""
        with self._lock:
            self._left, self._fault, self._chosen, self.failed = times, fault, chosen, 0

    def fault_of(self, method: str, path: str) -> Fault | None:
        """Note a request; return how it is to fail, if it is."""
        with self._lock:
            self.requests.append((method, path))
            if self._left <= 0 or not self._chosen(method, path):
                return None
            self._left -= 1
            self.failed += 1
            return self._fault

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that go away are what this is for."""


class _Passage(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Door

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self._body()
        fault = self.server.fault_of(self.command, self.path)
        if fault == "503":
            self._answer(503, {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>")
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
            self.close_connection = True
        else:
            response, content = self._passed_on(body)
            kept = {k: v for k, v in response.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
            self._answer(response.status, kept, content, cut=fault == "truncated")

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _passed_on(self, body: bytes) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection("127.0.0.1", self.server.server, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "content-length")}
        connection.request(self.command, self.path, body=body, headers=headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response, content

    def _answer(self, status: int, headers: dict[str, str], content: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name in headers):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True
        self.wfile.flush()


@contextlib.contextmanager
def door(port: int) -> Iterator[Door]:
    """Open a door to a server within the block."""
    with Door(port) as opened:
        thread = threading.Thread(target=opened.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield opened
        finally:
            opened.shutdown()
            thread.join()
