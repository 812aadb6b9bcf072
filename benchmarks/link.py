"""Link: a network of its own for a race, whose only link the kernel paces.

Without it gloo's own copying competes with the ranks for the cores, and what is measured where the
link is the bound is the scheduler.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


class LinkError(Exception):
    """This node gives no such link; says why, and what to do."""


@contextmanager
def paced(gbit: float) -> Iterator[None]:
    """Processes that are started within see a loopback of so many Gbit/s, and nothing else.

    Raises:
        LinkError: it cannot be made here.
    """
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    try:
        if _LIBC.unshare(_CLONE_NEWNET):
            raise LinkError(_refusal(os.strerror(ctypes.get_errno())))
        try:
            _run("ip", "link", "set", "lo", "up")
            _run(
                *("tc", "qdisc", "add", "dev", "lo", "root", "tbf"),
                *("rate", f"{gbit:g}gbit", "burst", "256kb", "latency", "100ms"),
            )
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            yield
        finally:
            assert _LIBC.setns(before, _CLONE_NEWNET) == 0, "it came from there"
    finally:
        os.close(before)
        os.environ.pop("GLOO_SOCKET_IFNAME", None)
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface


def sent_bytes() -> int:
    """All that the loopback of this network has sent, on behalf of every rank."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    (line,) = (line for line in lines if "lo:" in line)
    return int(line.partition(":")[2].split()[8])


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise LinkError(_refusal(f"no {command[0]}: install iproute2")) from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().split("\n")[0]
        raise LinkError(_refusal(f"{' '.join(command)}: {said}")) from error


def _refusal(why: str) -> str:
    return (
        f"--link-gbit: no paced link can be made here ({why}); it takes Linux, root and tc's tbf; "
        "leave the option out, and take rows where the link is the bound for the scheduler's"
    )
