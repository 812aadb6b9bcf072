"""The registry of vLLM 0.32 as the planner has it, written anew and compared.

Run as a script with tests/support on the path, it writes the names into vllm_classes.py.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from vllm.config.model import iter_architecture_defaults, try_match_architecture_defaults
from vllm.model_executor.models import registry

FILE = Path(__file__).parents[3] / "vllm_layershard" / "models" / "vllm_classes.py"
BEGIN = "# Written by tests/support/truth/registry.py: begin\n"
END = "# end\n"


def names() -> str:
    """The lists as Python, with the markers around them."""
    return "".join([BEGIN, *_lists(), END])


def own() -> set[str]:
    """What vLLM has a class of its own for."""
    return {name for name, (module, _) in registry._VLLM_MODELS.items() if module != "transformers"}


def on_transformers() -> set[str]:
    """What vLLM runs on the Transformers backend, by name."""
    return set(registry._TRANSFORMERS_SUPPORTED_MODELS)


def backend() -> set[str]:
    """The classes of the Transformers backend itself."""
    return set(registry._TRANSFORMERS_BACKEND_MODELS)


def suffixes() -> list[tuple[str, str]]:
    """Ends of names, in vLLM's order, with what a class of such a name is converted to."""
    return [(suffix, convert) for suffix, (_, convert) in iter_architecture_defaults()]


def generating() -> set[str]:
    """What generates, though a name with its end is one that pools."""
    names = {*registry._TEXT_GENERATION_MODELS, *registry._MULTIMODAL_MODELS}
    ends = {name: try_match_architecture_defaults(name) for name in names}
    return {name for name, end in ends.items() if end is not None and end[1][0] == "pooling"}


def in_plugins() -> set[str]:
    """What a plugin has that vLLM names."""
    return set(registry._OOT_SUPPORTED_MODELS)


def former() -> dict[str, str]:
    """What vLLM had, and the last version that did."""
    return dict(registry._PREVIOUSLY_SUPPORTED_MODELS)


def _lists() -> Iterator[str]:
    yield _written("_OWN", own())
    yield _written("_ON_TRANSFORMERS", on_transformers())
    yield _written("_BACKEND", backend())
    yield _written("_FORMER", (f"{name}:{version}" for name, version in former().items()))
    yield _written("_IN_PLUGINS", in_plugins())
    yield _written("_GENERATE_ALL_THE_SAME", generating())
    yield _written("_SUFFIXES", (":".join(pair) for pair in suffixes()), ordered=True)


def _written(name: str, words: Iterable[str], *, ordered: bool = False) -> str:
    words = words if ordered else sorted(words)
    lines = textwrap.wrap(" ".join(words), 96, break_long_words=False)
    return "\n".join([f'{name}: Final = """', *(f"    {line}" for line in lines), '"""\n'])


if __name__ == "__main__":
    before, _, rest = FILE.read_text().partition(BEGIN)
    FILE.write_text(before + names() + rest.partition(END)[2])
