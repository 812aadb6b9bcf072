"""LoadedModel: a model that was found and read, to be asked about many times."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from vllm_layershard.config import short
from vllm_layershard.errors import UnknownModelError
from vllm_layershard.models import (
    Evidence,
    FoundModel,
    Model,
    bundled_names,
    evidence_for,
    find,
    model_of,
    supported,
)
from vllm_layershard.planner.results.document import SCHEMA_VERSION

Progress = Callable[[int, int], None]
"""Called with how many of how many files have been asked for."""


class LoadedModel(NamedTuple):
    """A config.json where it was found, and the model that it describes.

    `offline`: the Hub is not asked for its tensors either.
    """

    found: FoundModel
    model: Model
    offline: bool = False

    def __repr__(self) -> str:
        return f"<LoadedModel {self.name} from {self.source}>"

    @property
    def name(self) -> str:
        """What it was asked for by."""
        return self.model.name

    @property
    def source(self) -> str:
        """Where its config.json came from."""
        return self.model.source

    @property
    def revision(self) -> str | None:
        """The commit of its config.json; None for a local path, and where nobody said."""
        return self.found.revision

    @property
    def architecture(self) -> str:
        """The first entry of `architectures`."""
        return self.model.architecture

    @property
    def num_layers(self) -> int:
        """Hidden layers, without draft (MTP) layers."""
        return self.model.num_layers

    @property
    def parameters(self) -> int:
        """Weights that a checkpoint stores, without draft layers and quantisation scales."""
        return self.model.parameters

    @property
    def dtype(self) -> str:
        """What is not quantised: `bfloat16` or `float16`."""
        return self.model.dtype

    @property
    def quantization(self) -> str:
        """`none`, or the name of the method."""
        return self.model.quantization

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of where it was found, and what its config leaves open."""
        return (*self.found.notes, *self.model.notes)

    def document(self) -> dict[str, Any]:
        """An entry of `layershard models --json`."""
        keys = ("name", "architecture", "num_layers", "parameters", "dtype", "quantization")
        return {key: getattr(self, key) for key in keys}


class ModelsResult(NamedTuple):
    """The models that come with the package, and every architecture that can be planned."""

    models: tuple[LoadedModel, ...]
    architectures: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """`layershard models --json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "models": [model.document() for model in self.models],
            "architectures": list(self.architectures),
        }


def load_model(name: str | os.PathLike[str], *, offline: bool = False) -> LoadedModel:
    """Find a model by a path, a bundled name or a name on the Hub, and read its config.json.

    With `offline` the Hub is never asked; the environment variable HF_HUB_OFFLINE=1 says the same.

    Raises:
        UnknownModelError: nothing of that name, or an architecture that is not known.
        ModelError: its config.json is broken or inconsistent.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise UnknownModelError(
            f"{short(name)} is no name; give a path or a name such as 'DeepSeek-V3'"
        )
    found = find(os.fspath(name), offline=offline)
    return LoadedModel(found, model_of(found), offline)


def list_models() -> ModelsResult:
    """Read every model that comes with the package."""
    return ModelsResult(tuple(load_model(name) for name in bundled_names()), supported())


def evidence_of(
    loaded: LoadedModel, *, exact: bool, progress: Progress | None
) -> tuple[Evidence, tuple[str, ...]]:
    """Compare a model with its checkpoint, and return notes for the user, too.

    Raises:
        UnknownModelError: `exact`, and the headers are nowhere or cannot be reached.
        ModelError: a header is broken.
    """
    return evidence_for(
        loaded.found, loaded.model, exact, progress or _silent, offline=loaded.offline
    )


def _silent(done: int, total: int) -> None:
    """Count for nobody."""
