"""Runner: starts parts one after another, and survives whatever becomes of one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from gpu.cases import lacking
from gpu.part import Part, Process, Unread

LAST_START_S = 7 * 60.0
"""No process starts later, counted from the start of the run."""
END_S = 9 * 60.0
"""What still runs then is ended: a machine that is lent for ten minutes has it all."""
_LOOK_S = 0.05

Row = dict[str, Any]


class Clock(Protocol):
    """What `time` offers; a test has its own."""

    def monotonic(self) -> float:
        """Seconds."""

    def sleep(self, seconds: float, /) -> None:
        """Return later."""


class Runner:
    """`write` gets each row at once: `part`, `case`, and either `outcome` or what it reports.

    An outcome is passed, failed (`how`: raised, crashed, hung, cut off or not started) or not run;
    the last two say `why`. `tally` counts them. `gpus` is None where nobody knows how many there
    are. `stopped` is asked what has asked the run to end, if anything has. The minutes count from
    `began_s` of the clock; None: from now.
    """

    def __init__(
        self,
        write: Callable[[Row], None],
        gpus: int | None,
        clock: Clock = time,
        start: Callable[[Part, int], Process] = Process,
        stopped: Callable[[], str | None] = lambda: None,
        began_s: float | None = None,
    ) -> None:
        self.tally: Counter[str] = Counter()
        self.lacked_time = False
        self._write = write
        self._gpus = gpus
        self._clock = clock
        self._start = start
        self._stopped = stopped
        self._began = clock.monotonic() if began_s is None else began_s
        self._heard_of = self._in_case = self._raised = False
        """Of the process: whether it came to a case, is in one, and the last one raised."""

    def run(self, parts: Iterable[Part | Unread]) -> None:
        """All of them, each until its cases have an outcome."""
        for part in parts:
            if isinstance(part, Unread):
                self._say({"part": part.module}, "failed", part.why, how="not read")
                continue
            why = lacking(part.gpus, self._gpus)
            if why is not None:
                self._not_run(part, 0, why)
                continue
            self._run(part)

    def _run(self, part: Part) -> None:
        case = 0
        while case < len(part.cases):
            if self._stopped():
                self._not_run(part, case, f"{self._stopped()} ended the run")
                return
            if self._now() >= LAST_START_S:
                self.lacked_time = True
                self._not_run(part, case, "minute 7 has passed, and nothing starts after it")
                return
            case = self._watch(part, case)

    def _watch(self, part: Part, case: int) -> int:
        """One process, from `case` on. Returns the first case that has no outcome yet."""
        try:
            first, process = case, self._start(part, case)
        except OSError as error:  # no memory, process or room for its files is left
            why = f"its process could not be started: {error}"
            self._say(_of(part, case), "failed", why, how="not started")
            self._not_run(part, case + 1, why)
            return len(part.cases)
        try:
            how, case = self._listen(part, case, process)
        finally:
            status, said = process.end()
        between = self._heard_of and not self._in_case
        if how == "crashed" and between and status == (1 if self._raised else 0):
            return case  # it ended as it should, after one case or all
        until = f"{self._stopped()} ended the run" if self._stopped() else f"{END_S:g} s had passed"
        reasons = {
            "crashed": said,
            "hung": f"nothing was heard of it for {part.limit_s:g} s; {said}",
            "cut off": f"it still ran when {until}; {said}",
        }
        self._say(_of(part, case), "failed", reasons[how], how=how)
        if not self._heard_of:
            self._not_run(part, first + 1, "its process never came to a case")
            return len(part.cases)
        return case + 1

    def _listen(self, part: Part, case: int, process: Process) -> tuple[str, int]:
        """Until it is over: how it was, and the first case that has no outcome yet."""
        heard = self._clock.monotonic()
        self._heard_of = self._in_case = self._raised = False
        how = None
        while how is None:
            over = process.ended()  # before its rows are read: then they are all there
            for row in process.reader.rows():
                heard = self._clock.monotonic()
                case = self._hear(part, case, row)
            if over:
                how = "crashed"
            elif self._clock.monotonic() - heard > part.limit_s:
                how = "hung"
            elif self._now() > END_S or self._stopped():
                how = "cut off"
            else:
                self._clock.sleep(_LOOK_S)
        return how, case

    def _hear(self, part: Part, case: int, row: Row) -> int:
        """What a process says of a case. Returns the case that comes next."""
        if "row" in row:
            self._write(_of(part, case) | row["row"])
            return case
        if "began" in row:
            self._heard_of = self._in_case = True
            self._raised = False
            return int(row["began"])
        self._in_case = False
        self._raised = "failed" in row
        if self._raised:
            self._say(_of(part, case), "failed", row["failed"], how="raised", trace=row["trace"])
        else:
            self._say(_of(part, case), "passed")
        return case + 1

    def _not_run(self, part: Part, first: int, why: str) -> None:
        for case in range(first, len(part.cases)):
            self._say(_of(part, case), "not run", why)

    def _say(self, what: Row, outcome: str, why: str = "", **more: str) -> None:
        self.tally[outcome] += 1
        reason = {"why": why} if why else {}
        self._write(what | {"outcome": outcome, "at_s": round(self._now(), 1)} | more | reason)

    def _now(self) -> float:
        return self._clock.monotonic() - self._began


def _of(part: Part, case: int) -> Row:
    said = part.cases[case] if case < len(part.cases) else "its end"
    return {"part": part.name} | ({"case": said} if said else {})
