"""Row: one class of vLLM's, with the weights and activations that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from vllm_layershard.models.quantization.served.form import Form, Forms
from vllm_layershard.models.quantization.served.needs import Needs

Inputs = tuple[Forms | None, ...]
"""Forms of activations; None: they are not quantised."""

ANY: Final[Inputs] = (None, Forms())

What = Literal["linears", "routed experts"]


class Row(NamedTuple):
    """`scheme` is the class. `source`: where vLLM 0.32 chooses it.

    `formats`: the section's packing that it asks for; empty: none. `why`: what it says where it
    refuses in the end; empty: it does not. `read`: whether the planner knows its tensors. `needs`:
    the devices on which it is built; None: each that vLLM has this method for.
    """

    scheme: str
    weights: Forms
    inputs: Inputs
    source: str
    formats: tuple[str, ...] = ()
    why: str = ""
    read: bool = True
    needs: Needs | None = None

    def takes(self, weights: Form, packing: str) -> bool:
        """Whether the weights are for it, whatever the activations."""
        return self.weights.take(weights) and (not self.formats or packing in self.formats)

    def serves(self, weights: Form, inputs: Form | None, packing: str) -> bool:
        """Whether it is for these weights with these activations."""
        return self.takes(weights, packing) and any(
            taken is None if inputs is None else taken is not None and taken.take(inputs)
            for taken in self.inputs
        )


class Verdict(NamedTuple):
    """`scheme` where vLLM has a class that the planner reads, else `refused` says why not.

    `exists`: vLLM has a class. `needs`: the devices on which it is built, as of a row.
    """

    scheme: str
    refused: str
    exists: bool
    needs: Needs | None = None


def judge(
    rows: Sequence[Row], what: What, weights: Form, inputs: Form | None, packing: str = ""
) -> Verdict:
    """The first row that serves these weights with these activations; without one, a refusal."""
    row = next((row for row in rows if row.serves(weights, inputs, packing)), None)
    if row is not None and not row.why and row.read:
        return Verdict(row.scheme, "", exists=True, needs=row.needs)
    pair = f"{what} of {weights} with these activations ({_shown(inputs)})"
    if row is not None and not row.read:
        has = f"vLLM 0.32 has a class for {pair}, {row.scheme}"
        return Verdict("", f"{has}, and the planner does not read it yet", exists=True)
    taken = [
        _shown(forms)
        for row in rows
        if row.takes(weights, packing) and row.read and not row.why
        for forms in row.inputs
    ]
    said = f", since {row.why}" if row is not None else ""
    rest = f"; it takes these: {', '.join(dict.fromkeys(taken))}" if taken else ""
    return Verdict("", f"vLLM 0.32 has no class for {pair}{said}{rest}", exists=False)


def weights_of(rows: Sequence[Row], packing: str = "") -> list[str]:
    """The weights that rows take in this packing, in words."""
    taken = (row.weights for row in rows if not row.formats or packing in row.formats)
    return list(dict.fromkeys(map(str, taken)))


def _shown(forms: Form | Forms | None) -> str:
    return "unquantised" if forms is None else str(forms)
