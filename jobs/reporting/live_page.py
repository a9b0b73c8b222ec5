"""A report that keeps itself fresh: a server for this machine's own browsers, and a page that asks it for news."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOOPBACK = "127.0.0.1"


class LivePage:
    """The page that is served: whoever makes it puts each new one here."""

    def __init__(self) -> None:
        self._page, self.version = b"", 0

    def show(self, html: Callable[[int], str]) -> None:
        """Serve the page that `html` makes of its number; browsers that show another load it."""
        self._page = html(self.version + 1).encode()
        self.version += 1

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """Return kind and content of what is at a path of the server; None if nothing is."""
        return {
            "/": ("text/html; charset=utf-8", self._page),
            "/version": ("text/plain", str(self.version).encode()),
        }.get(path)


@contextlib.contextmanager
def served(port: int) -> Iterator[tuple[LivePage, str]]:
    """Have a server within the block, and the address of its page.

    It listens on the loopback device alone and asks nobody for a password: all users of this machine may read the page.
    Only requests for that device by name are answered, so that no page from elsewhere can read it through a browser.

    Args:
        port: where; 0 for any that is free.

    Raises:
        OSError: if the port is taken.
    """
    page = LivePage()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            own = {f"{name}:{self.server.server_port}" for name in (LOOPBACK, "localhost")}  # type: ignore[attr-defined]
            found = page.answer(self.path) if self.headers.get("Host") in own else None
            if found is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            kind, content = found
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing: a line for every look of a browser would hide what is said of the runs."""

    with ThreadingHTTPServer((LOOPBACK, port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield page, f"http://{LOOPBACK}:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def changes(state: Callable[[], object], every_s: float) -> Iterator[None]:
    """Yield at once, and then whenever `state` returns something else; it is asked every `every_s` seconds."""
    before = None
    while True:
        now = state()
        if now != before:
            yield
        before = now
        time.sleep(every_s)
