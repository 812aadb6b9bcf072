"""Server: a real `vllm serve` in a process group of its own, on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from serving.layout import TWO_RANKS, Layout
from serving.obeyed import overruled

START_TIMEOUT_S = 400
STOP_TIMEOUT_S = 20
END_TIMEOUT_S = 120

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "300",
}
"""On a crowded machine the HTTP server's loop may sleep over its 5 s: it then drops a connection on
which a request has arrived."""

EAGER = ("--enforce-eager", "--compilation-config", '{"custom_ops": ["all", "-rotary_embedding"]}')
"""Eager mode without the custom op that corrupts MLA's three-dimensional query (vLLM 0.32, CPU)."""


class ServerError(Exception):
    """The server ended before it was ready, or did not get ready; `log` is all that it printed."""

    def __init__(self, reason: str, log: str, returncode: int | None) -> None:
        super().__init__(f"{reason}\n{log[-4000:]}")
        self.log = log
        self.returncode = returncode


class Server:
    """A context: ready on entry, gone with all its processes on exit.

    `sharding` is the value of the key `layer_sharding`, or None for a server without the key.
    `elsewhere` are arguments of the nodes beside the first, which overrule the others. One API
    server is up 15 s sooner than the one for each rank that vLLM starts by default (None).
    """

    def __init__(
        self,
        model: Path,
        log: Path,
        *,
        layout: Layout = TWO_RANKS,
        eager: bool = True,
        sharding: Any = None,
        arguments: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        elsewhere: tuple[str, ...] = (),
        api_servers: int | None = 1,
    ) -> None:
        self.model = model
        self.engines = layout.dp
        self.port = free_port()
        self._log = log
        self._environment = {**os.environ, **ENVIRONMENT, **(environment or {})}
        self.command = [
            str(Path(sys.executable).with_name("vllm")), "serve", str(model),
            "--served-model-name", "model",
            *layout.serving,
            "--max-model-len", "256",
            "--max-num-seqs", "8",
            "--seed", "0",
            "--no-enable-prefix-caching",
            *(EAGER if eager else ()),
            *_asking_for(sharding),
            *arguments,
        ]  # fmt: skip
        counted = () if api_servers is None else ("--api-server-count", str(api_servers))
        first, *others = _nodes(layout, ("--port", str(self.port), *counted))
        self.nodes = [first, *((*options, *elsewhere) for options in others)]
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def groups(self) -> list[int]:
        """The process groups of its nodes, while it runs and after."""
        return [process.pid for process in self._processes]

    def __enter__(self) -> Server:
        try:
            self.start()
            self.wait_until_ready()
            self._check_obeyed()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start its nodes, and leave them to themselves."""
        self._processes = []
        with self._log.open("w") as log:
            for options in self.nodes:
                self._processes.append(self._start(options, log))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """POST JSON to an endpoint of the server; its JSON answer, or None if it is empty."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read() or "null")

    def stop(self) -> None:
        """End the server and everything that it started."""
        try:
            for process in self._processes:
                process.send_signal(signal.SIGTERM)
            for process in self._processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_TIMEOUT_S)
        finally:
            for process in self._processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def wait_for_end(self, seconds: float, nodes: int | None = None) -> list[int]:
        """The exit codes of its first `nodes` (None: all), once they have ended of themselves.

        Raises:
            subprocess.TimeoutExpired: one has not, within `seconds`.
        """
        deadline = time.monotonic() + seconds
        ending = self._processes[:nodes]
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in ending]

    def end(self) -> list[int]:
        """Ask it to end, and give it time; the exit codes of its nodes' first processes."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        return [process.wait(END_TIMEOUT_S) for process in self._processes]

    def _check_obeyed(self) -> None:
        """What vLLM turns off with a line in its log, or without one, would go untested.

        Raises:
            ServerError: it has done so.
        """
        log = self.log_text()
        if found := overruled(self.command, log):
            raise ServerError(f"vLLM has turned off {', '.join(found)}", log, None)

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")

    def _start(self, options: tuple[str, ...], log: IO[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.command, *options],
            env=self._environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_until_ready(self) -> None:
        """Return when it answers.

        Raises:
            ServerError: it ended, or does not get ready.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            for process in self._processes:
                if process.poll() is not None:
                    reason = f"the server ended with {process.returncode}"
                    raise ServerError(reason, self.log_text(), process.returncode)
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise ServerError(f"not ready in {START_TIMEOUT_S} s", self.log_text(), None)


def _asking_for(sharding: Any) -> tuple[str, ...]:
    if sharding is None:
        return ()
    return ("--additional-config", json.dumps({"layer_sharding": sharding}))


def _nodes(layout: Layout, serving: tuple[str, ...]) -> list[tuple[str, ...]]:
    """What each node's command adds: the first one serves, the others are headless."""
    if layout.nodes == 1:
        return [serving]
    local, rest = divmod(layout.dp, layout.nodes)
    assert rest == 0, f"{layout.dp} data-parallel ranks on {layout.nodes} nodes"
    meeting = (
        "--data-parallel-address", "127.0.0.1",
        "--data-parallel-rpc-port", str(free_port()),
        "--data-parallel-size-local", str(local),
    )  # fmt: skip
    headless = [
        (*meeting, "--headless", "--data-parallel-start-rank", str(node * local))
        for node in range(1, layout.nodes)
    ]
    return [(*meeting, *serving), *headless]


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
