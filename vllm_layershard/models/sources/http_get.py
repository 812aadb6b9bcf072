"""One GET of a file or of a part of it, bounded in bytes and in time."""

from __future__ import annotations

import http.client
import re
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import IO, Any

from vllm_layershard.errors import ModelError
from vllm_layershard.models.sources.running import Running

_SOCKET_SECONDS = 5.0
_REQUEST_SECONDS = 20.0
"""For a whole request, name look-up and redirects included: a server may trickle for ever.

A socket's timeout is for one read only, and looking up a name has none.
"""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A body, the commit that it is of, if the server said so, and the whole file's bytes."""

    body: bytes
    commit: str | None
    file_bytes: int


def get(
    url: str, where: str, limit: int, span: tuple[int, int] | None, token: str | None
) -> Fetched:
    """The body at an address, or of it the bytes from span[0] up to, not including, span[1].

    The token goes to the address's host only, never along with a redirect to another.

    Raises:
        OSError, ValueError, HTTPException: it cannot be reached, or refuses. What they say may
            hold the token or the address: never print it.
        ModelError: more than `limit` bytes, or another part than was asked for.
    """
    return Running(lambda: _get(url, where, limit, span, token)).result(_REQUEST_SECONDS)


def _get(
    url: str, where: str, limit: int, span: tuple[int, int] | None, token: str | None
) -> Fetched:
    request = urllib.request.Request(url, headers={"User-Agent": "layershard"})
    if token is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    if span is not None:
        request.add_header("Range", f"bytes={span[0]}-{span[1] - 1}")
    commits = _Redirects()
    with _opener(commits).open(request, timeout=_SOCKET_SECONDS) as response:
        commits.note(response.headers)
        if span is not None:
            return _part(response, where, span, commits.commit)
        body = response.read(limit + 1)
    if len(body) > limit:
        raise ModelError(f"{where}: the Hub sent more than {limit:,} bytes")
    return Fetched(body, commits.commit, len(body))


def _part(response: Any, where: str, span: tuple[int, int], commit: str | None) -> Fetched:
    if response.status != http.client.PARTIAL_CONTENT:
        raise ModelError(
            f"{where}: the Hub sends whole files where a part was asked for; plan without --exact"
        )
    said = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range") or "")
    start, end = span
    if said is None or int(said[1]) != start or not start <= int(said[2]) < end:
        raise ModelError(f"{where}: the Hub sent another part of it than was asked for")
    body: bytes = response.read(end - start + 1)
    file_bytes = int(said[3])
    if len(body) != min(end, file_bytes) - start:
        raise ModelError(
            f"{where}: the Hub sent {len(body):,} bytes where {end - start:,} were asked for"
        )
    return Fetched(body, commit, file_bytes)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects with the token to the same host only; keeps the commit on the way."""

    max_redirections = 5

    def __init__(self) -> None:
        self.commit: str | None = None

    def note(self, headers: http.client.HTTPMessage) -> None:
        """The commit, if these headers say it and none before did."""
        commit = headers.get("X-Repo-Commit") or ""
        if self.commit is None and _COMMIT.fullmatch(commit):
            self.commit = commit

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The next request; urllib leaves unredirected headers out."""
        self.note(headers)
        after = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if after is not None and token is not None and _origin(after) == _origin(req):
            after.add_unredirected_header("Authorization", token)
        return after


def _origin(request: urllib.request.Request) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(request.full_url)
    return parts.scheme, parts.netloc.lower()


def _opener(redirects: _Redirects) -> urllib.request.OpenerDirector:
    """http and https only: urllib's own would follow a redirect to ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        redirects,
    ):
        opener.add_handler(handler)
    return opener
