"""Peers: the processes whose memory this one has mapped, and whether they still run.

By the kernel's own handles on them (pidfd, Linux 5.3): one system call asks after all. A process's
number may be another's by the time that a peer reads it, so the address has the time of its start,
which is compared once the handle holds the number.
"""

from __future__ import annotations

import os
import select
import weakref
from contextlib import suppress
from pathlib import Path

from vllm_layershard.errors import NodeError, TransportError
from vllm_layershard.runtime.peer_memory.boot import boot_id

Address = dict[str, str | int]
"""Where a process is found, as plain data: its node, PID namespace, number and start."""


def address() -> Address:
    """This process's."""
    return {
        "host": boot_id(),
        "hostname": os.uname().nodename,
        "namespace": os.readlink("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "started": _started("self"),
    }


def _started(process: int | str) -> int:
    """When it was started, in clock ticks since the boot: field 22 of proc_pid_stat(5).

    Raises:
        OSError: it has ended.
    """
    said = Path(f"/proc/{process}/stat").read_text(errors="replace")
    return int(
        said.rpartition(")")[2].split()[19]
    )  # from the third field on: names may have spaces


class Peers:
    """`rank` is this process's global rank, for the messages."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._ranks: dict[int, int] = {}
        self._ends = select.poll()
        weakref.finalize(self, _close, self._ranks)

    def watch(self, rank: int, where: Address) -> None:
        """Count the process at this address in, as global rank `rank`.

        Raises:
            NodeError: it is on another node, or in another container; or the system gives no handle
                on it.
            TransportError: it has ended.
        """
        here = address()
        for key, what in (("host", "node"), ("namespace", "container (PID namespace)")):
            if where[key] != here[key]:
                raise NodeError(
                    f"rank {self._rank} on {here['hostname']} cannot read the device memory of "
                    f"rank {rank} on {where['hostname']}, in another {what}; keep each group in "
                    "one, or use transport 'broadcast' where its ranks run in lockstep"
                )
        pid = int(where["pid"])
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise self._gone(rank) from None
        except OSError as error:  # an old kernel (ENOSYS), a sandbox (EPERM), no descriptor left
            raise NodeError(
                f"rank {self._rank} on {here['hostname']} cannot watch rank {rank}, process {pid}: "
                f"pidfd_open says {error.strerror}; allow that call (Linux 5.3 and later), or use "
                "transport 'broadcast' where the ranks run in lockstep"
            ) from error
        try:
            same = _started(pid) == where["started"]
        except OSError:
            same = False
        if not same:
            os.close(fd)
            raise self._gone(rank)
        self._ranks[fd] = rank
        self._ends.register(fd, select.POLLIN)

    def check(self) -> None:
        """Return if all run.

        Raises:
            TransportError: one has ended.
        """
        for fd, _ in self._ends.poll(0):
            raise self._gone(self._ranks[fd])

    def _gone(self, rank: int) -> TransportError:
        return TransportError(
            f"rank {self._rank}: rank {rank} has ended, and the weights that it stored in device "
            "memory with it; see that rank's log, then restart all ranks of this model together"
        )


def _close(fds: dict[int, int]) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)
