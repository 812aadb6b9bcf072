"""Endpoint: whom the planner asks for files, and the token that it says there.

A message never holds the token, nor any of HF_ENDPOINT but its scheme, host and port.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from typing import Final, NamedTuple

from vllm_layershard.errors import UnknownModelError

_HUB: Final = "https://huggingface.co"
_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?|[0-9a-f:.]{2,60}")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]{1,4096}")


class Endpoint(NamedTuple):
    """`address`: what a file's name is appended to; `shown`: what may be printed of it."""

    address: str
    shown: str
    token: str | None

    @property
    def notes(self) -> tuple[str, ...]:
        """That the token can be read on its way."""
        if self.token is None or not self.address.startswith("http://"):
            return ()
        return (
            f"HF_TOKEN goes to {self.shown} unencrypted, and whoever is on the way can read it; "
            "give HF_ENDPOINT an https:// address, or unset HF_TOKEN",
        )


def read_endpoint() -> Endpoint:
    """That of HF_ENDPOINT, or the Hugging Face Hub, with the token of HF_TOKEN.

    Raises:
        UnknownModelError: either is not valid. The message says nothing of what they hold.
    """
    given = os.environ.get("HF_ENDPOINT", "").strip() or _HUB
    if not given.lower().startswith(("https://", "http://")):
        raise UnknownModelError("HF_ENDPOINT: must start with https:// or http://")
    try:
        parts = urllib.parse.urlsplit(given)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not _HOST.fullmatch(host) or not _VISIBLE.fullmatch(given) or "@" in parts.path:
        raise UnknownModelError(
            "HF_ENDPOINT: is no address; write https://HOST or http://HOST:PORT"
        )
    shown = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}"
    shown += "" if port is None else f":{port}"
    if "@" in parts.netloc:
        raise UnknownModelError(
            f"HF_ENDPOINT: names a user or a password for {shown}, which are not sent; leave them "
            "out, and give a token as HF_TOKEN"
        )
    if parts.query or parts.fragment:
        raise UnknownModelError(f"HF_ENDPOINT: has more than an address behind {shown}")
    return Endpoint(shown + parts.path.rstrip("/"), shown, _token())


def _token() -> str | None:
    """The token without white space around it: secrets are often mounted with a line break."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        return None
    if not _VISIBLE.fullmatch(token):
        raise UnknownModelError(
            "HF_TOKEN: holds characters other than visible ASCII, or too many; set it again, or "
            "unset it"
        )
    return token
