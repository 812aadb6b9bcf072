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
from typing import Any

START_TIMEOUT_S = 400
STOP_TIMEOUT_S = 20

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}

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
    """

    def __init__(
        self,
        model: Path,
        log: Path,
        *,
        ranks: int = 2,
        eager: bool = True,
        sharding: Any = None,
        arguments: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.model = model
        self.ranks = ranks
        self.port = _free_port()
        self._log = log
        self._environment = {**os.environ, **ENVIRONMENT, **(environment or {})}
        self.command = [
            str(Path(sys.executable).with_name("vllm")), "serve", str(model),
            "--port", str(self.port),
            "--served-model-name", "model",
            "--data-parallel-size", str(ranks),
            "--max-model-len", "256",
            "--max-num-seqs", "8",
            "--seed", "0",
            "--no-enable-prefix-caching",
            *(EAGER if eager else ()),
            *_asking_for(sharding),
            *arguments,
        ]  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self.command,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

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
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_TIMEOUT_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                reason = f"the server ended with {self._process.returncode}"
                raise ServerError(reason, self.log_text(), self._process.returncode)
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
