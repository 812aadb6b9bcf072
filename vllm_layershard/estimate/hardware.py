"""Hardware: what the estimate needs to know of a device, each number with its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vllm_layershard.errors import HardwareError

Basis = Literal["exact", "formula", "measured", "assumed"]
"""What stands behind a number. `exact`: the bytes themselves; `formula`: follows from stated
sizes; `measured`: on real hardware, by whom the source says; `assumed`: neither."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a device, in the unit that its field says."""

    value: float
    basis: Basis
    source: str


@dataclass(frozen=True, slots=True)
class BusTable:
    """Bus bandwidth over message sizes: bytes ascending, bytes per second."""

    sizes: tuple[int, ...]
    bandwidths: tuple[float, ...]
    basis: Basis
    source: str


@dataclass(frozen=True, slots=True)
class Hardware:
    """One device. Rates are dense peaks in FLOP/s, bandwidths bytes per second one way.

    `low_bit` is the fp8 rate, or the int8 one where there is no fp8; None: fp8 weights are
    computed at the `bf16` rate. `node_size` devices share `intra_node`, further ones `inter_node`.
    """

    name: str
    memory_bytes: Figure
    memory_bandwidth: Figure
    bf16: Figure
    low_bit: Figure | None
    intra_node: Figure
    inter_node: Figure
    node_size: int
    bus: BusTable | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Each number with its basis and source, a line each."""
        figures = {
            "memory": self.memory_bytes,
            "memory bandwidth": self.memory_bandwidth,
            "bf16 rate": self.bf16,
            "fp8 or int8 rate": self.low_bit,
            "link within a node": self.intra_node,
            "link between nodes": self.inter_node,
        }
        lines = [f"{key}: {f.basis}, {f.source}" for key, f in figures.items() if f is not None]
        if self.bus is not None:
            lines.append(f"bus bandwidth: {self.bus.basis}, {self.bus.source}")
        return tuple(lines)


def unknown_hardware(name: str, known: tuple[str, ...]) -> HardwareError:
    """The error for a device without a profile."""
    return HardwareError(
        f"--hardware {name}: there is no profile of that name, and its numbers are not guessed; "
        f"known are {', '.join(known)}"
    )
