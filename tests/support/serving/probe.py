"""A worker extension: reach into the real workers of a running server, over its RPC endpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

ARGUMENTS = ("--worker-extension-cls", "serving.probe.Probe")
ENVIRONMENT = {
    "PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    "VLLM_SERVER_DEV_MODE": "1",
}
"""What a server needs to be probed."""


class Probe:
    """Mixed into vLLM's worker."""

    model_runner: Any
    vllm_config: Any

    def poison_slots(self) -> int:
        """Fill every slot with NaN; how many series were poisoned."""
        from vllm_layershard.runtime.ops import bound_series

        for series in bound_series():
            series.slots.poison()
        return len(bound_series())

    def are_poisoned(self) -> list[str]:
        """The series of which every byte of every slot is as `poison_slots` has left it."""
        from gloo.moving import is_poisoned
        from vllm_layershard.runtime.ops import bound_series

        return [series.name for series in bound_series() if is_poisoned(series)]

    def moved(self) -> dict[str, list[int]]:
        """By series: how many forwards have moved weights, and how many tokens."""
        from vllm_layershard.runtime.ops import bound_series

        counters = {series.name: series.counters for series in bound_series()}
        return {
            name: [c.forwards - c.activation_forwards, c.activation_forwards]
            for name, c in counters.items()
        }

    def poison_padding(self) -> None:
        """From now on the rows that a token exchange adds are NaN instead of zeros."""
        from vllm_layershard.runtime.exchange import tokens

        padded = tokens.padded

        def poisoned(x: Any, rows: int) -> Any:
            filled = padded(x, rows)
            filled[x.shape[0] :] = float("nan")
            return filled

        tokens.padded = poisoned

    def negate_owned(self, owner: int, layer_id: int) -> list[str]:
        """On global rank `owner`, change the sign of its weights of that layer; their series."""
        from vllm_layershard.runtime.ops import bound_series

        changed = []
        for series in bound_series():
            layer_ids = series.plan.series.layer_ids
            if _rank_of(series) == owner and layer_id in layer_ids:
                position = layer_ids.index(layer_id)
                assert series.owns(position)
                for tensor in series.resident[position].values():
                    tensor.neg_()
                changed.append(series.name)
        return changed

    def fail_at(self, rank: int, series_name: str, layer_id: int, signal_number: int) -> None:
        """On global rank `rank`, have this signal sent to itself where it would move the layer."""
        from vllm_layershard.runtime.ops import bound_series

        (series,) = (s for s in bound_series() if s.name == series_name)
        fatal = series.plan.series.layer_ids.index(layer_id)
        start = series.transport.start

        def failing(position: int, slot: int) -> Any:
            if position == fatal:
                os.kill(os.getpid(), signal_number)
            return start(position, slot)

        if _rank_of(series) == rank:
            series.transport.start = failing  # type: ignore[method-assign]

    def reload_some(self, directory: str, suffixes: list[str]) -> int:
        """Reload the weights of these names from a checkpoint, as vLLM reloads all; how many."""
        from vllm.config import set_current_vllm_config

        from serving.weights import weights_of

        some = weights_of(Path(directory), tuple(suffixes))
        with set_current_vllm_config(self.vllm_config):
            self.model_runner.reload_weights(weights_iterator=iter(some.items()))
        return len(some)

    def reload_half(self, directory: str, suffixes: list[str], failing: int) -> None:
        """A reload whose checkpoint ends half-way on one rank: `failing`, counted over replicas."""
        from vllm.config import set_current_vllm_config

        from serving.weights import weights_of
        from vllm_layershard.runtime.ops import bound_series

        some = list(weights_of(Path(directory), tuple(suffixes)).items())
        fails = _rank_of(bound_series()[0]) == failing

        def each() -> Any:
            for number, item in enumerate(some):
                if fails and number == len(some) // 2:
                    raise OSError("the checkpoint ends here")
                yield item

        with set_current_vllm_config(self.vllm_config):
            self.model_runner.reload_weights(weights_iterator=each())

    def addresses(self) -> dict[str, list[int]]:
        """Where each series' weights are read from, by position."""
        from vllm_layershard.runtime.ops import bound_series

        return {s.name: _addresses(s) for s in bound_series()}


def _rank_of(series: Any) -> int:
    """The global rank, over all replicas, of the process that holds a series."""
    return series.group.ranks[series.group.group_rank]


def _addresses(series: Any) -> list[int]:
    return [
        tensor.data_ptr()
        for position in range(len(series.plan.series))
        for tensor in series.weights(position).values()
    ]
