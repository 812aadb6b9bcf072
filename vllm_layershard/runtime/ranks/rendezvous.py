"""Rendezvous: where ranks meet that share no process group: documents in the node's shared memory.

Each rank shows documents under subjects, for as long as it lives, and reads what the others show. A
rank that restarts shows its own anew and finds those of the others where they were; what a dead
process has left is as good as not there.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from vllm_layershard.errors import ConfigError, MismatchError, TransportError
from vllm_layershard.runtime import shared_memory
from vllm_layershard.runtime.piece import Piece
from vllm_layershard.runtime.ranks.messages import decoded
from vllm_layershard.runtime.shared_memory import PREFIX


def patience_of(environment: Mapping[str, str]) -> float:
    """What VLLM_ENGINE_READY_TIMEOUT_S says, or vLLM's own default.

    Raises:
        ConfigError: it is no whole number of seconds, as vLLM wants it.
    """
    text = environment.get("VLLM_ENGINE_READY_TIMEOUT_S", "600")
    try:
        seconds = int(text)
    except ValueError:
        seconds = 0
    if seconds < 1:
        raise ConfigError(
            f"VLLM_ENGINE_READY_TIMEOUT_S = {text!r}: give a whole number of seconds, at least 1"
        )
    return float(seconds)


PATIENCE_S = patience_of(os.environ)
"""How long a rank waits for another's document: as long as vLLM lets an engine take to get ready,
because one may find its weights in the page cache and another on a cold network disk. Nobody waits
here once the model is loaded."""

HANDOVER_S = 30.0
"""How long a rank waits for its former self to end, which may still be giving back its memory."""

_LOOK_S = 0.05

_MOST_LOOKS = 100
"""How often a document is looked for that is shown anew at each look."""

_END = "end"
_ONLY = "only"


class Rendezvous:
    """`name` is that of a deployment: the same on its ranks, and on one that restarts.

    `place` is what its user calls it by: where its ranks meet.
    """

    def __init__(self, name: str, rank: int, place: str = "") -> None:
        """Also removes what dead processes have left on this node, of whatever deployment.

        Raises:
            MismatchError: the rank runs already. Nothing that it shows has changed.
            NodeError: the node's shared memory cannot be used.
        """
        shared_memory.sweep()
        self.name = name
        self.rank = rank
        self._pieces: dict[str, Piece] = {_ONLY: Piece(0)}
        try:
            self._be_alone(self._pieces[_ONLY], place or name)
            shared_memory.sweep()  # what the rank's former self has left, if it was waited for
        except BaseException:
            self.close()
            raise

    def _be_alone(self, piece: Piece, place: str) -> None:
        """Give the piece a name of this rank's that no two living processes have."""
        name = self._name_of(_ONLY, self.rank)
        deadline = time.monotonic() + HANDOVER_S
        while (holder := piece.claim(name)) is not None:
            if holder == os.getpid():
                piece.name(name)
                return
            if time.monotonic() > deadline:
                whose = f"process {holder}" if holder else "a process of another container"
                raise MismatchError(
                    f"rank {self.rank} of the deployment that meets at {place} runs already on "
                    f"this node, as {whose}; process {os.getpid()} was started as the same rank, "
                    "and ends: start each rank once, end what is left of an earlier start, or "
                    "give another deployment a port of its own"
                )
            time.sleep(_LOOK_S)

    def publish(self, subject: str, document: Any) -> None:
        """Show the others `document`, plain data, under this subject; in the place of a former one.

        Raises:
            NodeError: the node has no shared memory left.
        """
        name = self._name_of(subject, self.rank)
        piece = Piece.of(name, json.dumps(document).encode())
        former, self._pieces[subject] = self._pieces.get(subject), piece
        if former is not None:
            former.remove()

    def look(self, subject: str, rank: int) -> Any:
        """What that rank shows now; None if nothing: it has not come so far, or has ended."""
        document = self._shown(subject, rank)
        return None if document is None else decoded(rank, document)

    def read(self, subject: str, ranks: Sequence[int]) -> list[Any]:
        """What each of these ranks shows under `subject`, in their order. Waits for all of them.

        Raises:
            TransportError: a rank did not show anything within PATIENCE_S, or said why it ended.
            NodeError: what one shows cannot be read.
            MismatchError: what one shows is no JSON.
        """
        found: dict[int, Any] = {}
        deadline = time.monotonic() + PATIENCE_S
        while True:
            missing = [rank for rank in ranks if rank not in found]
            for rank in missing:
                document = self._shown(subject, rank)
                if document is not None:
                    found[rank] = decoded(rank, document)
            missing = [rank for rank in missing if rank not in found]
            if not missing:
                return [found[rank] for rank in ranks]
            for rank in missing:
                ended = shared_memory.read(self._name_of(_END, rank))  # also of the dead
                if ended is not None:
                    raise TransportError(f"rank {rank} ended: {decoded(rank, ended)}")
            if time.monotonic() > deadline:
                who = " and ".join(map(str, missing))
                raise TransportError(
                    f"rank {self.rank}: rank {who} did not come to compare notes on this node "
                    f"({subject}) within {PATIENCE_S:g} s: it died, hangs or was not launched, or "
                    "it is on another node, where its memory cannot be read; see its log, and keep "
                    "replicas that share weights on one node"
                )
            time.sleep(_LOOK_S)

    def leave(self, error: Exception) -> None:
        """Tell the others that this rank ends, and why, so that they wait for it no longer.

        They may come to wait for it when it is gone: only the next start removes this document.
        """
        with suppress(Exception):  # the error at hand says more
            self.publish(_END, f"{type(error).__name__}: {error}")
            self._pieces.pop(_END).leave_behind()

    def close(self) -> None:
        """Take all documents away; the others wait for them if they have not read them."""
        for piece in self._pieces.values():
            piece.remove()
        self._pieces.clear()

    def _name_of(self, subject: str, rank: int) -> str:
        return f"{PREFIX}{self.name}-{subject}-{rank}"

    def _shown(self, subject: str, rank: int) -> bytes | None:
        name = self._name_of(subject, rank)
        return shared_memory.read(name) if rank == self.rank else _of_the_living(name)


def _of_the_living(name: str) -> bytes | None:
    """The content of a piece that another process of this user has written, and still holds."""
    for _ in range(_MOST_LOOKS):
        fd = shared_memory.open_to_read(name)
        if fd is None:
            return None
        try:
            if _is_held(name, fd):
                return shared_memory.content(name, fd)
            if shared_memory.has(name, fd):
                return None
        finally:
            shared_memory.close(fd)
        # Its writer has let go of it because it has shown another one meanwhile.
    return None


def _is_held(name: str, fd: int) -> bool:
    """Whether the process that wrote an open piece of another's still has it."""
    with shared_memory.reading(name):
        try:
            fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
    return False
