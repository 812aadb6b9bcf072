"""The CPU's side stream: a thread that is not bound to the core on which the model computes."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from machine import NEEDS_LINUX, NEEDS_TWO_CORES

PINNED_AS_BY_VLLM = """
import os, threading
import torch
from vllm_layershard.runtime.device import device_of

everywhere, ended = os.sched_getaffinity(0), threading.Event()
another = threading.Thread(target=ended.wait)  # as OpenMP's others, on cores of their own
another.start()
os.sched_setaffinity(0, {min(everywhere)})
seen = []
device = device_of(torch.device("cpu"))
device.join(device.enqueue(lambda: seen.append(os.sched_getaffinity(0))))
ended.set()
assert os.sched_getaffinity(0) == {min(everywhere)}, "the compute stays where it was"
assert seen == [everywhere], seen
"""


@NEEDS_LINUX
@NEEDS_TWO_CORES
def test_the_side_thread_is_not_bound_to_the_core_of_the_compute():
    subprocess.run([sys.executable, "-c", textwrap.dedent(PINNED_AS_BY_VLLM)], check=True)


FORKED = """
import os, signal
import torch
from vllm_layershard.runtime.device import device_of

device = device_of(torch.device("cpu"))
device.join(device.enqueue(lambda: None))
child = os.fork()
if child == 0:
    signal.alarm(30)  # against a hang
    moved = []
    device.join(device.enqueue(lambda: moved.append(os.getpid())))
    os._exit(0 if moved == [os.getpid()] else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
device.join(device.enqueue(lambda: None))
"""


def test_a_forked_child_moves_weights_on_a_thread_of_its_own():
    """The parent's thread stays behind: what the child would wait for, nobody would do."""
    subprocess.run([sys.executable, "-c", textwrap.dedent(FORKED)], check=True)
