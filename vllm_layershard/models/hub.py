"""Hub: fetches one config.json from the Hugging Face Hub, or from the mirror in HF_ENDPOINT."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request

from vllm_layershard.errors import UnknownModelError
from vllm_layershard.models.config_file import MAX_FILE_BYTES, ConfigFile, parse_config

_ENDPOINT = "https://huggingface.co"
_TIMEOUT_SECONDS = 5.0
_TRUE = ("1", "on", "yes", "true")
_REMEDY = "give the path of its directory or config.json instead"


def fetch_config(name: str) -> ConfigFile:
    """Fetch `config.json` of a repository's main revision, with HF_TOKEN if there is one.

    Raises:
        UnknownModelError: offline, no network, no such repository, or no access.
        ModelError: what came is no config.json.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE:
        raise UnknownModelError(
            f"{name}: is not bundled and not in the Hugging Face cache, and HF_HUB_OFFLINE forbids "
            f"to ask the Hub; {_REMEDY}"
        )
    endpoint = (os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")
    url = f"{endpoint}/{name}/resolve/main/config.json"
    if not url.startswith(("https://", "http://")):
        raise UnknownModelError(f"HF_ENDPOINT = {endpoint!r}: must start with https:// or http://")
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "layershard"})
        if token := os.environ.get("HF_TOKEN"):
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            raw: bytes = response.read(MAX_FILE_BYTES + 1)
    except urllib.error.HTTPError as error:
        status = error.code
        error.close()
        if status in (401, 403):
            reason = "the Hub has no such public model; if it is gated or private, set HF_TOKEN"
        elif status == 404:
            reason = "the Hub has no such model, or it has no config.json; check the name"
        else:
            reason = f"the Hub answered with status {status}; try again later"
        raise UnknownModelError(f"{name}: {reason}, or {_REMEDY}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", None) or error)
        raise UnknownModelError(
            f"{name}: is not bundled and not in the Hugging Face cache, and the Hub at {endpoint} "
            f"cannot be reached ({reason}); {_REMEDY}"
        ) from None
    return parse_config(raw, f"{name} (Hub)")
