"""A Hub on this machine: a real server of one repository, with the manners that a test asks for."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "some/model"
LISTS = [f"/api/models/{NAME}/revision/{revision}" for revision in ("main", COMMIT)]
HANG_S = 60
"""How long a server hangs that nobody releases."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a directory as the repository some/model; `manners` says how badly."""

    root: Path
    manners: str
    elsewhere: str
    seen: list[tuple[str, str | None, str | None]]
    released: threading.Event
    """Until then it hangs, or trickles."""

    def do_GET(self) -> None:
        headers = self.headers
        self.seen.append((self.path, headers.get("Range"), headers.get("Authorization")))
        if self.path in LISTS and not self.manners:
            inside = (path for path in self.root.rglob("*") if path.is_file())
            names = [{"rfilename": str(path.relative_to(self.root))} for path in inside]
            self.answer(200, json.dumps({"siblings": names}).encode())
            return
        owner, name, _, revision, quoted = self.path.lstrip("/").split("/", 4)
        file = urllib.parse.unquote(quoted.partition("?")[0].partition("#")[0])
        path = self.root / file
        if self.manners == "hangs up at once":
            self.close_connection = True
        elif f"{owner}/{name}" != NAME or revision not in ("main", COMMIT) or not path.is_file():
            self.answer(404, b"")
        elif self.manners == "redirects" and self.elsewhere:
            self.answer(302, b"", {"Location": f"{self.elsewhere}{self.path}"})
        elif self.manners == "circles":
            self.answer(302, b"", {"Location": self.path})
        elif self.manners == "leads to a file":
            self.answer(302, b"", {"Location": "file:///etc/passwd"})
        elif self.manners == "leads to ftp":
            self.answer(302, b"", {"Location": "ftp://127.0.0.1/x"})
        elif self.manners == "hangs":
            self.released.wait(HANG_S)
        elif self.manners == "trickles":
            self.trickle()
        elif self.manners == "speaks no HTTP":
            self.wfile.write(f"{headers.get('Authorization')}\r\n\r\n".encode())
            self.close_connection = True
        elif self.manners == "fails aloud":
            self.send_response(500, headers.get("Authorization"))
            self.end_headers()
        elif self.manners == "leads to the token":
            self.answer(302, b"", {"Location": f"x-{headers.get('Authorization')}://[x"})
        elif self.manners == "refuses" and file.endswith(".safetensors"):
            self.answer(403, b"")
        else:
            self.serve(path.read_bytes())

    def serve(self, contents: bytes) -> None:
        asked = self.headers.get("Range")
        if asked is None or self.manners == "ignores ranges":
            self.answer(200, contents)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end, total = int(first), int(last) + 1, len(contents)
        if self.manners == "sends another part":
            start, end = start + 1, end + 1
        body = contents[start:end]
        said = f"bytes {start}-{end - 1}/{total}"
        if self.manners == "sends less":
            body = body[:-1]
        elif self.manners == "sends more":
            body += b"more"
        elif self.manners == "states no part":
            said = "nonsense"
        elif self.manners == "states the token":
            said = self.headers.get("Authorization") or ""
        elif self.manners == "states another size":
            said = f"bytes {start}-{end - 1}/{total + 1}"
        elif self.manners == "grows":
            said = f"bytes {start}-{end - 1}/{total + len(self.seen)}"
        elif self.manners == "hangs up":
            self.answer(206, body[:-1], {"Content-Range": said}, length=len(body))
            return
        self.answer(206, body, {"Content-Range": said})

    def answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("X-Repo-Commit", COMMIT)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def trickle(self) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.released.wait(0.05):
            self.wfile.write(b"x")

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Clients hang up on it here, which is what is tested."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


def serving(handler: type[Handler]) -> Iterator[str]:
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
