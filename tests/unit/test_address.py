"""Addresses of clusters as people have them, asked of real servers that are not what they are taken for."""

import http.server
import json
import platform
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import address


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("ray://head:10001", r"ray:// is for Ray Client.*\(head:6379\).*zfdist cluster submit"),
        ("ray://[::1]:10001", r"\(\[::1\]:6379\)"),
        ("http://head:8265", r"http:// is for a dashboard.*submit --address http://head:8265 .*head:6379"),
        ("https://ray.example.com/", r"https:// is for a dashboard.*ray\.example\.com:6379"),
        ("redis://:secret@head:6379", r"redis:// is no address of Ray; give HOST:PORT .*\(head:6379\)"),
        ("foo", "it has no port; give HOST:PORT"),
        ("", "it has no port"),
        (":6379", "it has no host"),
        ("head:", "'' is no port"),
        ("head:ray", "'ray' is no port"),
        ("head:0", "'0' is no port"),
        ("head:65536", "'65536' is no port"),
        ("he ad:6379", "'he ad' is no host"),
        ("::1:6379", r"'::1' is no host.*\[HOST\]:PORT"),
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_gcs_is_named_with_the_remedy(given: str, why: str) -> None:
    found = address.misread(given)
    assert found is not None and "\n" not in found
    assert re.search(why, found), found


@given(host=st.from_regex(r"[a-z0-9][a-z0-9.-]{0,30}", fullmatch=True), port=st.integers(1, 65535))
def test_host_and_port_are_an_address(host: str, port: int) -> None:
    assert address.misread(f"{host}:{port}") is None
    assert address.misread(f"[fe80::1]:{port}") is None


@given(st.text(max_size=40))
def test_no_text_is_read_with_an_exception(text: str) -> None:
    why = address.misread(text)
    if why is None:
        host, _, port = text.rpartition(":")
        assert host and 0 < int(port) < 65536


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve each connection by `answer`, in a thread of its own; gives HOST:PORT."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    there, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(there,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@contextmanager
def web(status: int, body: bytes) -> Iterator[str]:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def _says_nothing(there: socket.socket) -> None:
    there.recv(1 << 16)
    threading.Event().wait(30)


def _speaks_redis(there: socket.socket) -> None:
    there.recv(1 << 16)
    there.sendall(b"-ERR unknown command\r\n")
    there.close()


def test_ports_that_are_no_gcs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "ANSWER_S", 1.0)
    with web(200, b"<html>hello</html>") as there:
        assert "a web server answers, no GCS" in (address.refused(there) or "")
    with listening(_speaks_redis) as there:
        assert "what listens there is no GCS" in (address.refused(there) or "")
    with listening(_says_nothing) as there:
        assert "no GCS answers within 1 s" in (address.refused(there) or "")
    assert "nothing listens there" in (address.refused(there) or "")
    assert "no machine of that name" in (address.refused("nowhere.invalid:6379") or "")
    assert "no machine of that name" in (address.refused("a..b:6379") or "")


@contextmanager
def gcs(metadata: dict[str, str] | None, refusal: str | None = None) -> Iterator[str]:
    """Answer over gRPC as the GCS of a cluster with such versions does, or refuse with a code."""
    grpc = pytest.importorskip("grpc")
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    class Store(gcs_service_pb2_grpc.InternalKVGcsServiceServicer):  # type: ignore[misc]
        def InternalKVGet(self, request: object, context: object) -> object:
            if refusal:
                context.abort(getattr(grpc.StatusCode, refusal), "")  # type: ignore[attr-defined]
            return gcs_service_pb2.InternalKVGetReply(value=json.dumps(metadata).encode())

    class Nodes(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):  # type: ignore[misc]
        def GetAllNodeInfo(self, request: object, context: object) -> object:
            return gcs_service_pb2.GetAllNodeInfoReply()

    server = grpc.server(ThreadPoolExecutor(2))
    if metadata is not None or refusal:
        gcs_service_pb2_grpc.add_InternalKVGcsServiceServicer_to_server(Store(), server)
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(Nodes(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_clusters_that_cannot_be_joined() -> None:
    import ray

    python = platform.python_version()
    ours = {"ray_version": ray.__version__, "python_version": python}
    for metadata, refusal, why in (
        (ours | {"ray_version": "2.49.2"}, None, f"it runs Ray 2.49.2, and this is Ray {ray.__version__}"),
        (ours | {"python_version": "3.9.1"}, None, f"it runs Python 3.9.1, and this is Python {python}"),
        (ours, None, "this machine is no node of that cluster; run the command on one"),
        (None, None, "another service than a GCS answers, as Ray Client's on port 10001"),
        (None, "UNAUTHENTICATED", "token"),
    ):  # fmt: skip
        with gcs(metadata, refusal) as there:
            assert why in (address.refused(there) or ""), (metadata, refusal)


def test_dashboards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "ANSWER_S", 1.0)
    with web(200, b'{"version": "4", "ray_version": "2.60.0"}') as there:
        assert address.dashboard_refused(f"http://{there}") is None
        assert address.dashboard_refused(f"http://{there}/") is None
        for given in (there, f"ray://{there}"):
            assert "at http://127.0.0.1:8265 unless" in (address.dashboard_refused(given) or "")
    with web(200, b"<html>hello</html>") as there:
        assert "it is not Ray's dashboard" in (address.dashboard_refused(f"http://{there}") or "")
    with web(404, b"") as there:
        assert "it is not Ray's dashboard" in (address.dashboard_refused(f"http://{there}") or "")
    with listening(_says_nothing) as there:
        assert "answers nothing within 1 s" in (address.dashboard_refused(f"http://{there}") or "")
    with listening(_speaks_redis) as there:
        assert "no web server answers" in (address.dashboard_refused(f"http://{there}") or "")
    assert "nothing listens there" in (address.dashboard_refused(f"http://{there}") or "")
    for given in ("auto", "local", "", "http://", "foo"):
        assert "jobs go to the dashboard" in (address.dashboard_refused(given) or ""), given
    assert address.dashboard_refused("http://nowhere.invalid:8265") == "no machine of that name is known here"
    assert "no web server answers" in (address.dashboard_refused("http://127.0.0.1:x") or "")
