"""Scanner: walks JSON text piece by piece, so that hostile text costs no more memory than itself.

`json.loads` turns `[[],[],[]...` into twenty times its size; this builds nothing but strings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import NoReturn

from vllm_layershard.errors import ModelError

_LONGEST = 300
_MOST_SKIPPED = 1 << 20
_MOST_VALUES = 1 << 19
_SINGLE = 8
"""A value read by itself counts for so many, as it takes so much longer than one of a run.

Files known have 210,000 in runs and a dozen others.
"""

_SPACE = re.compile(r"[ \t\n\r]*+")
_PAIR = re.compile(
    r'[ \t\n\r]*+,[ \t\n\r]*+"([^"\\\x00-\x1f]*+)"'
    r'[ \t\n\r]*+:[ \t\n\r]*+"([^"\\\x00-\x1f]*+)"'
)
"""A comma and the next key and string, as every writer known spells them.

Read so, 150,000 tensors of an index take half the time that `names` and `string` take for them.
"""

_SCALAR = re.compile(
    r"-?(?:0|[1-9]\d*+)(?:\.\d++)?(?:[eE][+-]?\d++)?|true|false|null|NaN|-?Infinity", re.ASCII
)


def decoded(raw: bytes, where: str) -> str:
    """The text of a JSON file.

    Raises:
        ModelError: not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{where}: is not UTF-8 text (byte {error.start})") from None


@dataclass(slots=True)
class Scanner:
    """A text and how far it has been read; every read moves `position` on.

    `values` counts what was read, so that a text of many small values is refused, not walked.

    Raises:
        ModelError: from every method, where the text is not what is asked for.
    """

    text: str
    where: str
    position: int = 0
    values: int = 0

    def fail(self, problem: str) -> NoReturn:
        """Raise a ModelError that names the file; what it quotes may be as long as the file."""
        cut = problem if len(problem) <= _LONGEST else f"{problem[: _LONGEST - 3]}..."
        raise ModelError(f"{self.where}: {cut}")

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        match = _SPACE.match(self.text, self.position)
        assert match is not None, "it matches nothing, too"
        self.position = match.end()
        return self.text[self.position : self.position + 1]

    def take(self, characters: str) -> str:
        """One of these characters."""
        found = self.peek()
        if not found or found not in characters:
            wanted = " or ".join(repr(character) for character in characters)
            what = repr(found) if found else "the end"
            self.fail(f"is not valid: {what} at character {self.position} instead of {wanted}")
        self.position += 1
        return found

    def string(self) -> str:
        """A JSON string."""
        self.take('"')
        try:
            found, self.position = scanstring(self.text, self.position, True)
        except ValueError as error:
            self.fail(f"is not valid JSON: {error}")
        assert isinstance(found, str)
        return found

    def names(self) -> Iterator[str]:
        """The keys of an object, each time with `position` at its value, which the caller reads."""
        self.take("{")
        if self.peek() == "}":
            self.position += 1
            return
        while True:
            key = self.string()
            self.take(":")
            self._single()
            yield key
            if self.take(",}") == "}":
                return

    def pairs(self) -> Iterator[tuple[str, str]]:
        """The keys and values of an object that holds nothing but strings."""
        for key in self.names():
            yield key, self.string()
            yield from self.run()

    def run(self) -> Iterator[tuple[str, str]]:
        """Within `names`, after a value: the pairs of strings of the usual spelling that follow."""
        while pair := _PAIR.match(self.text, self.position):
            self.position = pair.end()
            self.values += 1
            if self.values > _MOST_VALUES:
                self._too_many()
            yield pair[1], pair[2]

    def skip(self, depth: int = 32) -> None:
        """A value of any kind that nobody looks at; a large one is none of those known."""
        self._skip(depth, self.position + _MOST_SKIPPED)

    def _skip(self, depth: int, until: int) -> None:
        if not depth:
            self.fail("is nested too deeply")
        opening = self.peek()
        if opening == '"':
            self.string()
        elif opening == "{":
            for _ in self.names():
                self._skip(depth - 1, until)
        elif opening == "[":
            for _ in self._items():
                self._skip(depth - 1, until)
        else:
            scalar = _SCALAR.match(self.text, self.position)
            if scalar is None:
                self.fail(f"is not valid JSON at character {self.position}")
            self.position = scalar.end()
        if self.position > until:
            self.fail(f"has more than {_MOST_SKIPPED:,} characters of metadata")

    def _items(self) -> Iterator[None]:
        """Each time with `position` at an item of a list, which the caller reads."""
        self.take("[")
        if self.peek() == "]":
            self.position += 1
            return
        while True:
            self._single()
            yield
            if self.take(",]") == "]":
                return

    def _single(self) -> None:
        self.values += _SINGLE
        if self.values > _MOST_VALUES:
            self._too_many()

    def _too_many(self) -> NoReturn:
        self.fail(
            f"has more values than are read: {_MOST_VALUES:,} strings in a row, or "
            f"{_MOST_VALUES // _SINGLE:,} of other kinds"
        )

    def end(self) -> None:
        """Nothing but white space is left."""
        if self.peek():
            self.fail(f"is not valid: something follows at character {self.position}")
