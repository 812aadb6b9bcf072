"""Side streams: on the CPU a thread off the core of the compute, on CUDA one of a pool apart."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import torch

from machine import NEEDS_LINUX, NEEDS_TWO_CORES
from simulated.streams import Accelerator
from vllm_layershard.runtime.device import device_of

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


def test_on_cuda_weights_move_on_a_stream_of_a_pool_that_others_seldom_use(monkeypatch):
    """Of the default priority it may be the stream on which vLLM runs shared experts."""
    asked: list[int] = []

    class Streams(Accelerator):
        def Stream(self, device=None, priority=0):
            asked.append(priority)
            return super().Stream(device)

    monkeypatch.setattr(torch, "cuda", Streams())
    device_of(torch.device("cuda", 0))
    assert asked == [-1]
