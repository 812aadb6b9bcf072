"""Hub: asks the Hugging Face Hub, or the mirror in HF_ENDPOINT, for files and parts of files."""

from __future__ import annotations

import http.client
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from vllm_layershard.errors import ModelError, UnknownModelError
from vllm_layershard.models.sources.config_file import MAX_FILE_BYTES, ConfigFile, parse_config

_ENDPOINT = "https://huggingface.co"
_SOCKET_SECONDS = 5.0
_REQUEST_SECONDS = 20.0
"""For a whole request, name look-up and redirects included: a server may trickle for ever."""
_TRUE = ("1", "on", "yes", "true")
_REMEDY = "give the path of its directory or config.json instead"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A body, the commit that it is of, if the server said so, and the whole file's bytes."""

    body: bytes
    commit: str | None
    file_bytes: int


class NoSuchFileError(UnknownModelError):
    """The Hub has no file of that name."""


def fetch_config(name: str) -> tuple[ConfigFile, str | None]:
    """`config.json` of a repository's main revision, and its commit if the Hub said it.

    Raises:
        UnknownModelError: offline, no network, no such repository, or no access.
        ModelError: what came is no config.json.
    """
    fetched = fetch(name, "main", "config.json", MAX_FILE_BYTES)
    return parse_config(fetched.body, f"{name} (Hub)"), fetched.commit


def fetch(
    name: str, revision: str, file: str, limit: int, span: tuple[int, int] | None = None
) -> Fetched:
    """A file of a repository, or of it the bytes from span[0] up to, not including, span[1].

    HF_TOKEN goes to the endpoint only, never along with a redirect to another host.

    Raises:
        NoSuchFileError: the repository has no such file, or there is no such repository.
        UnknownModelError: offline, no network, or no access.
        ModelError: more than `limit` bytes, or another part than was asked for.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE:
        raise not_asked(name, file, "HF_HUB_OFFLINE")
    endpoint = (os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        raise UnknownModelError(f"HF_ENDPOINT = {endpoint!r}: must start with https:// or http://")
    url = f"{endpoint}/{name}/resolve/{revision}/{file}"
    try:
        return _within(_REQUEST_SECONDS, lambda: _get(url, f"{name}: {file}", limit, span))
    except urllib.error.HTTPError as error:
        status = error.code
        error.close()
        raise _refused(name, file, status) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        raise UnknownModelError(
            f"{name}: {file}: the Hub at {endpoint} cannot be reached ({reason}); {_REMEDY}"
        ) from None


def not_asked(name: str, file: str, forbidding: str) -> UnknownModelError:
    """The error for a file that only the Hub has, where something forbids to ask it."""
    return UnknownModelError(
        f"{name}: {file} is neither local, nor bundled, nor in the Hugging Face cache, and "
        f"{forbidding} forbids to ask the Hub; {_REMEDY}"
    )


def _refused(name: str, file: str, status: int) -> UnknownModelError:
    kind = UnknownModelError
    if status in (401, 403):
        reason = "the Hub has no such public model; if it is gated or private, set HF_TOKEN"
    elif status == 404:
        reason, kind = (
            f"the Hub has no such model, or it has no {file}; check the name",
            NoSuchFileError,
        )
    else:
        reason = f"the Hub answered with status {status}; try again later"
    return kind(f"{name}: {reason}, or {_REMEDY}")


def _get(url: str, where: str, limit: int, span: tuple[int, int] | None) -> Fetched:
    request = urllib.request.Request(url, headers={"User-Agent": "layershard"})
    if token := os.environ.get("HF_TOKEN"):
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


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Run it in a thread and give up on it after so many seconds.

    A socket's timeout is for one read only, and looking up a name has none.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no whole answer within {seconds:.0f} seconds")
    return results[0]
