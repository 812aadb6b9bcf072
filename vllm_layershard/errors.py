"""The exception tree: everything that a user can cause.

LayerShardError
+-- ConfigError         what `additional_config` or a flag says is not valid
+-- PlanError           the configuration is valid, but not for these layers and ranks
+-- ModelError          a model cannot be planned
|   +-- UnknownModelError   no such model, path or architecture
+-- HardwareError       no such hardware profile, or a device that cannot serve the model
+-- HostError           this host, or this host's configuration, cannot shard layers
|   +-- NodeError           this node has not the memory that ranks could share
+-- MismatchError       ranks of one group do not agree, or received wrong bytes
+-- ReloadError         a reload was refused on every rank, and nothing has changed
+-- TransportError      a weight did not arrive: a rank died or hangs

The message always says what is wrong, where, and the remedy. Bugs are `assert`s, not these. None
is a ValueError: pydantic would wrap one that is raised while vLLM builds its configuration.
"""

import os
import re
from collections.abc import Mapping
from typing import Final

_USER: Final = r"(?i)((?:\b[a-z][a-z0-9+.-]*://|\b(?:https?|ftps?|ssh|git|s3|gs|hf):/))[^\s'\"]*@"
"""A URL as far as it names a user, with two slashes or with the one that a path leaves of them.
It is compiled at its first use, as all of these: most texts need none."""

_QUERY: Final = r"(?m)(?<=[^\s'\"(])[?#&;][^\s'\"=]*=(?:[^'\"\n:;,)]|[:;,)](?!\s|$))*"
"""What is asked for behind a name or an address: `?token=...`. A value may have spaces: it ends at
a quote or a line, or at a mark that a sentence has, with white space behind it."""

_VALUE: Final = r"(?i)((?:token|passwd|password|secret|signature|api_?key|access_?key)=)[^\s'\"]+"

_TOKEN: Final = (
    r"(?<![A-Za-z0-9])(?:hf_(?:oauth_|jwt_)?|api_org_)"
    r"(?:(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,}|[a-z]{16,})"
)
"""A token of the Hub. Short ones of small letters alone are names: `hf_transfer`."""

_NAMED_TOKENS: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SHORTEST: Final = 8
"""What is shorter would be found in other words, and is no token."""


def named_tokens() -> dict[str, str]:
    """The tokens that the environment holds, by its names for them."""
    held = {variable: os.environ.get(variable, "").strip() for variable in _NAMED_TOKENS}
    return {variable: token for variable, token in held.items() if len(token) >= _SHORTEST}


def without_secrets(text: str, tokens: Mapping[str, str] | None = None) -> str:
    """The text without what may be secret: a URL's user and password, a query, a token.

    `tokens`: what `named_tokens` has said, so that of many texts each need not ask.
    """
    if ":/" in text:
        text = re.sub(_USER, r"\1", text)
    if "=" in text:
        text = re.sub(_VALUE, r"\1...", re.sub(_QUERY, "?...", text))
    for variable, token in (named_tokens() if tokens is None else tokens).items():
        text = text.replace(token, f"{variable}'s value")
    return re.sub(_TOKEN, "hf_...", text) if "hf_" in text or "api_org_" in text else text


class LayerShardError(Exception):
    """Base of all errors that a user can cause and mend. No message holds a secret."""

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))


class ConfigError(LayerShardError):
    """A configured value is not valid, whatever the model."""


class PlanError(LayerShardError):
    """A valid configuration that cannot be planned for these layers and ranks."""


class ModelError(LayerShardError):
    """A model whose config.json cannot be read or is inconsistent."""


class UnknownModelError(ModelError):
    """No model, path or architecture of that name."""


class HardwareError(LayerShardError):
    """No hardware profile of that name, or a device on which vLLM does not serve the model."""


class HostError(LayerShardError):
    """The host (vLLM's version, platform or settings) cannot shard these layers."""


class NodeError(HostError):
    """The node (its shared memory, or its devices' IPC) cannot share memory between these ranks."""


class MismatchError(LayerShardError):
    """The ranks of a group disagree on the plan, or a weight arrived with other bytes."""


class ReloadError(LayerShardError):
    """A reload that no rank has begun: all go on with the weights that they have."""


class TransportError(LayerShardError):
    """A weight did not arrive, because a rank of the group died, hangs or left."""
