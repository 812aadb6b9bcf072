"""Provenance page: what provenance.json says of the bundled configs, for people to read.

    PYTHONPATH=tests/support python -m provenance_page

writes the page anew, beside the configs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from vllm_layershard.models.sources.provenance import PROVENANCE

PAGE: Final = Path(PROVENANCE).parents[1] / "configs" / "PROVENANCE.md"

_TITLE = "# Where these configs come from"
_WRITTEN = (
    "Written from `../sources/provenance.json`. "
    "`PYTHONPATH=tests/support python -m provenance_page` writes it anew."
)


def page() -> str:
    """The whole page."""
    document = json.loads(PROVENANCE.read_bytes())
    sources = [
        f"- {short} = {', '.join(source.values())}" for short, source in document["sources"].items()
    ]
    rows = [
        f"| {file} | {_found_in(config)} | {config['checked']} |"
        for file, config in document["configs"].items()
    ]
    parts = [
        _TITLE,
        _WRITTEN,
        "\n".join(document["notes"]),
        "Source short names:",
        "\n".join(sources),
        "\n".join(["| file | found in | cross-check |", "| --- | --- | --- |", *rows]),
    ]
    return "\n\n".join(parts) + "\n"


def _found_in(config: dict[str, str]) -> str:
    return " ".join(filter(None, (config["source"], config.get("copy"))))


if __name__ == "__main__":
    PAGE.write_text(page())
