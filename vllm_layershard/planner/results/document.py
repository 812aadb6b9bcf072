"""A typed result as plain data of JSON's types, schema_version 1.

Keys are added, never renamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from vllm_layershard.version import __version__

SCHEMA_VERSION: Final = 1


def plain(value: Any) -> Any:
    """A record as an object of its fields, a tuple as a list, and so on down."""
    if isinstance(value, tuple):
        if hasattr(value, "_fields"):
            return {name: plain(getattr(value, name)) for name in value._fields}
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def microseconds(seconds: float) -> float:
    """As the documents have times: to a tenth of a microsecond."""
    return round(seconds * 1e6, 1)


def document_of(result: Any, sections: Sequence[str]) -> dict[str, Any]:
    """The document of an answer: each section is the result's attribute of that name."""
    said = {name: plain(getattr(result, name)) for name in sections}
    return {"schema_version": SCHEMA_VERSION, "version": __version__, **said}
