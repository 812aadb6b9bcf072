"""Provenance: which revision of which source a bundled config was taken from."""

from __future__ import annotations

import re
from pathlib import Path

_SHORT = re.compile(r"^- (\w+) = ([\w.-]+/[\w.-]+), commit ([0-9a-f]{40})", re.MULTILINE)


def revision_of(provenance: Path, file: str) -> str | None:
    """`owner/repository@commit` of a bundled config, or what else PROVENANCE.md says of it."""
    text = provenance.read_text(encoding="utf-8")
    row = re.search(rf"^\| {re.escape(file)} \| ([^|]+) \|", text, re.MULTILINE)
    if row is None:
        return None
    found_in = row[1].strip()
    for short, repository, commit in _SHORT.findall(text):
        if found_in.split()[0] == short or found_in.startswith(repository):
            return f"{repository}@{commit[:12]}"
    return found_in
