"""Asks the Hugging Face Hub, or the mirror in HF_ENDPOINT, for files and parts of files."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import urllib.error
import urllib.parse

from vllm_layershard.errors import UnknownModelError
from vllm_layershard.models.sources.config_file import MAX_FILE_BYTES, ConfigFile, parse_config
from vllm_layershard.models.sources.endpoint import Endpoint, read_endpoint
from vllm_layershard.models.sources.http_get import Fetched, get
from vllm_layershard.models.sources.running import GivenUpError

_TRUE = ("1", "on", "yes", "true")
_REMEDY = "give the path of its directory or config.json instead"


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
    path = f"{name}/resolve/{revision}/{urllib.parse.quote(file, errors='surrogatepass')}"
    return _asked(name, file, path, limit, span)


def list_files(name: str, revision: str) -> list[str]:
    """The names of a revision's files, with their folders.

    Raises:
        UnknownModelError: offline, no network, no access, or the endpoint has no such list.
        ModelError: what came is no such list.
    """
    path = f"api/models/{name}/revision/{revision}"
    try:
        said = _asked(name, "the list of its files", path, MAX_FILE_BYTES, None)
    except NoSuchFileError:
        raise UnknownModelError(
            f"{name}: the Hub at {read_endpoint().shown} does not list the repository's files, so "
            f"nothing tells whether one states a quantisation; {_REMEDY}"
        ) from None
    info = parse_config(said.body, f"{name} (Hub)")
    siblings = info.get("siblings")
    if not isinstance(siblings, list) or not siblings:
        info.fail("siblings", "is missing or empty, and names the files")
    named = (each.get("rfilename") for each in siblings if isinstance(each, dict))
    return [file for file in named if isinstance(file, str)]


def _asked(name: str, file: str, path: str, limit: int, span: tuple[int, int] | None) -> Fetched:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE:
        raise not_asked(name, file, "HF_HUB_OFFLINE")
    endpoint = read_endpoint()
    url = f"{endpoint.address}/{path}"
    try:
        return get(url, f"{name}: {file}", limit, span, endpoint.token)
    except urllib.error.HTTPError as error:
        status = error.code
        error.close()
        raise _refused(name, file, status, endpoint) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UnknownModelError(
            f"{name}: {file}: the Hub at {endpoint.shown} cannot be reached ({_reason(error)}); "
            f"{_REMEDY}{_also(endpoint)}"
        ) from None


def hub_notes() -> tuple[str, ...]:
    """What a user should know of how the Hub is asked."""
    return read_endpoint().notes


def _reason(error: Exception) -> str:
    """Why a request failed, in words of ours or the system's: the error's own may hold secrets."""
    inner = getattr(error, "reason", None)
    cause = inner if isinstance(inner, Exception) else error
    if isinstance(cause, GivenUpError):
        return str(cause)
    if isinstance(cause, TimeoutError):
        return "timed out"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "its certificate is not trusted here"
    if isinstance(cause, ssl.SSLError):
        return "no encrypted connection to it"
    if isinstance(cause, socket.gaierror):
        return "its name is not known here"
    if isinstance(cause, OSError) and cause.errno is not None:
        return os.strerror(cause.errno)
    if isinstance(cause, (ConnectionError, http.client.IncompleteRead)):
        return "it closed the connection"
    if isinstance(cause, (http.client.HTTPException, OSError)):
        return "what it answers, or a proxy for it, is no HTTP"
    return "its address, or that of a proxy, is not valid"


def _also(endpoint: Endpoint) -> str:
    return "".join(f"; note that {note}" for note in endpoint.notes)


def not_asked(name: str, file: str, forbidding: str) -> UnknownModelError:
    """The error for a file that only the Hub has, where something forbids to ask it."""
    return UnknownModelError(
        f"{name}: {file} is neither local, nor bundled, nor in the Hugging Face cache, and "
        f"{forbidding} forbids to ask the Hub; {_REMEDY}"
    )


def _refused(name: str, file: str, status: int, endpoint: Endpoint) -> UnknownModelError:
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
    return kind(f"{name}: {reason}, or {_REMEDY}{_also(endpoint)}")
