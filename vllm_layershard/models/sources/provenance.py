"""Which revision of which source a bundled config was taken from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from vllm_layershard.bounded_file import read_bounded

PROVENANCE: Final = Path(__file__).with_name("provenance.json")
"""Of each bundled config its source, and what it was compared with."""


def revision_of(file: str) -> str:
    """`owner/repository@commit` of a bundled config, or the page that it was read from."""
    document = json.loads(read_bounded(PROVENANCE, 1 << 20))
    config = document["configs"][file]
    source = document["sources"][config["source"]]
    if "commit" in source:
        return f"{source['repository']}@{source['commit'][:12]}"
    return f"{config['source']} {config['copy']}"
