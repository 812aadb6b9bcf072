"""Form: how weights, or activations, are quantised; Forms: several of them."""

from __future__ import annotations

from typing import NamedTuple


class Form(NamedTuple):
    """`kind`: the numbers and their bits. `strategy`: what has one scale, in the method's words.

    `symmetric`: None where the config does not say, and the method does not assume it.
    `group`: how many elements have one, or rows and columns. `scales`: the dtype of scales, where
    the config states one.
    """

    kind: str
    strategy: str
    dynamic: bool = False
    symmetric: bool | None = True
    group: int | tuple[int, ...] | None = None
    scales: str = ""

    def __str__(self) -> str:
        """For example `dynamic float8 by token`."""
        words = (
            "dynamic" if self.dynamic else "",
            "asymmetric" if self.symmetric is False else "",
            f"{self.kind} by {self.strategy}",
            f"of {self.group}" if isinstance(self.group, int) else "",
        )
        return " ".join(word for word in words if word)


class Forms(NamedTuple):
    """All forms whose fields are among these; an empty field, or None, takes every value."""

    kinds: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    dynamic: bool | None = None
    symmetric: bool | None = None
    groups: tuple[int | tuple[int, ...], ...] = ()
    scales: tuple[str, ...] = ()

    def take(self, form: Form) -> bool:
        """Whether a form is one of them."""
        return (
            (not self.kinds or form.kind in self.kinds)
            and (not self.strategies or form.strategy in self.strategies)
            and self.dynamic in (None, form.dynamic)
            and self.symmetric in (None, form.symmetric)
            and (not self.groups or form.group in self.groups)
            and (not self.scales or form.scales in self.scales)
        )

    def __str__(self) -> str:
        """For example `dynamic symmetric float8 by token or group`."""
        words = (
            {True: "dynamic", False: "static", None: ""}[self.dynamic],
            {True: "symmetric", False: "asymmetric", None: ""}[self.symmetric],
            " or ".join(self.kinds) or "any",
            f"by {' or '.join(self.strategies)}" if self.strategies else "",
            f"of {' or '.join(map(str, self.groups))}" if self.groups else "",
            f"with scales in {' or '.join(self.scales)}" if self.scales else "",
        )
        return " ".join(word for word in words if word)
