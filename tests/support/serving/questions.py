"""Thirty-two prompts of mixed lengths, cut from the page at different places."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from recital.page import PAGE

LENGTHS = (10, 13, 17, 23, 37, 60, 71, 17)
"""With the answer, none is longer than the windows that the model was trained on."""
COUNT = 32


def questions(model: Path) -> list[list[int]]:
    """Token ids of each prompt."""
    page = AutoTokenizer.from_pretrained(model)(PAGE, add_special_tokens=False)["input_ids"]
    room = len(page) - max(LENGTHS) - 32
    return [
        page[start : start + LENGTHS[i % len(LENGTHS)]]
        for i in range(COUNT)
        for start in [(i * 7919) % room]
    ]
