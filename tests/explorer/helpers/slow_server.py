"""A server between the browser and the explorer that sends pages in two parts, as a slow machine or network does."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.request import urlopen


@contextmanager
def in_two_parts(site: str, share: float = 0.7, seconds: float = 0.3):
    """The address of a server that answers as ``site`` does, but sends the first ``share`` of a page, waits, then the rest."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                answer = urlopen(site + self.path)
            except HTTPError as error:
                answer = error
            body, kind = answer.read(), answer.headers["content-type"]
            self.send_response(answer.status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            cut = int(len(body) * share) if kind.startswith("text/html") else len(body)
            self.wfile.write(body[:cut])
            if cut < len(body):
                time.sleep(seconds)
                self.wfile.write(body[cut:])

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
