"""The metadata services of three clouds on loopback, as far as their notices go."""

import contextlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Service(BaseHTTPRequestHandler):
    """Answers only to who asks as the clouds want to be asked."""

    within_s: float | None = None
    """When the machine goes; None for no notice."""

    def do_PUT(self) -> None:
        known = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer("secret" if known else None, 400)

    def do_GET(self) -> None:
        if self.path.startswith("/latest/"):
            if self.headers["X-aws-ec2-metadata-token"] != "secret":
                return self._answer(None, 401)
            return self._answer(self._ec2(), 404)
        if self.path.startswith("/computeMetadata/"):
            return self._answer(self._gce() if self.headers["Metadata-Flavor"] == "Google" else None, 403)
        return self._answer(self._azure() if self.headers["Metadata"] == "true" else None, 400)

    def _at(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.within_s or 0)

    def _ec2(self) -> str | None:
        if self.within_s is None or not self.path.endswith("/meta-data/spot/instance-action"):
            return None
        return json.dumps({"action": "terminate", "time": self._at().strftime("%Y-%m-%dT%H:%M:%SZ")})

    def _gce(self) -> str:
        if self.path.endswith("/instance/preempted"):
            return "FALSE" if self.within_s is None else "TRUE"
        return "NONE"

    def _azure(self) -> str:
        if self.path.startswith("/metadata/instance/compute/name"):
            return "worker-7"
        when = format_datetime(self._at(), usegmt=True)
        mine = {"EventId": "1", "EventType": "Preempt", "Resources": ["worker-7"], "NotBefore": when}
        others = {"EventId": "2", "EventType": "Terminate", "Resources": ["worker-8"], "NotBefore": when}
        harmless = {"EventId": "3", "EventType": "Freeze", "Resources": ["worker-7"], "NotBefore": when}
        return json.dumps({"Events": [harmless, others] + ([] if self.within_s is None else [mine])})

    def _answer(self, text: str | None, refusal: int) -> None:
        self.send_response(refusal if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *words: object) -> None:
        """Print nothing."""


@contextlib.contextmanager
def served(*, within_s: float | None) -> Iterator[str]:
    """Serve all three within the block; gives the endpoint. The machine goes `within_s`, or stays (None)."""
    service = type("Service", (_Service,), {"within_s": within_s})
    server = ThreadingHTTPServer(("127.0.0.1", 0), service)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
