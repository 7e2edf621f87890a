"""Check the model of the refresh protocol with Spin: what must hold, and what must fail without a rule.

Usage: python proofs/check.py [small|all]. Needs spin and gcc on the path.
"""

# ruff: noqa: INP001, T201 - a script that prints

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

MODEL = Path(__file__).with_name("refresh.pml")
MAX_DEPTH = 1_000_000
SMALL_SECONDS, BIG_SECONDS = 240, 900
SMALL_MEGABYTES, BIG_MEGABYTES = 1500, 2000
AT_ONCE = 2


@dataclass(frozen=True)
class Configuration:
    """A set of switches, and the invariant that they must break; None where all must hold."""

    name: str
    switches: str
    breaks: str | None = None
    big: bool = False


@dataclass(frozen=True)
class Outcome:
    """What the verifier found."""

    states: int
    depth: int
    seconds: float
    violated: str | None
    trouble: str | None


def holds(name: str, switches: str, *, big: bool = False) -> Configuration:
    """Return a configuration with all rules, in which every invariant must hold."""
    return Configuration(name, switches, big=big)


def without(rules: str, breaks: str, switches: str) -> Configuration:
    """Return a configuration without `rules`, which must break the invariant named `breaks`."""
    flags = " ".join(f"WITHOUT_{rule}" for rule in rules.split())
    number = breaks.partition("_")[0].removeprefix("I")
    return Configuration(f"without {rules}", f"{flags} ONLY={number} {switches}", breaks)


ONE_REQUEST = "I1_one_request"
NEWER = "I2_nothing_newer_overwritten"
ONLY_GOOD = "I3_only_good_grant_kept"
FINAL = "I4_final_refusal_is_true"
OUTLASTS = "I5_lease_outlasts_request"
IN_TIME = "I6_lease_ends_in_time"
NOT_REPLACED = "I7_no_request_with_a_replaced_token"
ONE_A_MINUTE = "I8_one_refresh_a_minute"
OWN_TURN = "I9_turn_for_the_own_app"
OWN_REFUSAL = "I10_refusal_by_the_own_app"
HEARD = "I11_own_app_is_heard"

CONFIGURATIONS = (
    holds("rotation, crash", "ROTATE FREEZE=1 LOST_ACK=1 CRASH=1 LOST_ANSWER=1"),
    holds("no rotation, crash", "FREEZE=1 LOST_ACK=1 CRASH=1 LOST_ANSWER=1"),
    holds("refusals", "ROTATE FREEZE=1 LOST_ACK=1 FALSE_REFUSAL=1 REVOKE=1"),
    holds("disconnect, reconnect", "ROTATE FREEZE=1 LOST_ACK=1 DISCONNECT=1 RECONNECT=1"),
    holds("foreign end, foreign insert", "FREEZE=1 LOST_ACK=1 FOREIGN_END=1 FOREIGN_INSERT=1"),
    holds("foreign token", "ROTATE FREEZE=1 LOST_ACK=1 FOREIGN_TOKEN=1"),
    holds("stale row", "ROTATE STALE_ROW=1"),
    holds("rekey", "ROTATE FREEZE=1 LOST_ACK=1 REKEY=1"),
    holds("rekey, no rotation", "FREEZE=1 LOST_ACK=1 REKEY=1"),
    holds("failover", "ROTATE FREEZE=1 FAILOVER=1"),
    holds("failover, no rotation", "FREEZE=1 FAILOVER=1"),
    holds("failover, crash", "ROTATE FAILOVER=1 CRASH=1"),
    holds("clock steps", "ROTATE FREEZE=1 LEASE=2 CLOCK_BACK=1 CLOCK_FORWARD=1"),
    holds("storm", "ROTATE STORM"),
    holds("app named", "N=3 SENDS=1 ROTATE WRONG_APP FREEZE=1 LOST_ACK=1"),
    holds("app unknown, crash", "WRONG_APP UNKNOWN_APP FREEZE=1 LOST_ACK=1 CRASH=1"),
    holds("app unknown, refusals", "SENDS=3 ROTATE WRONG_APP UNKNOWN_APP FREEZE=1 LOST_ACK=1 FALSE_REFUSAL=1 REVOKE=1"),
    holds("app unknown, filled in", "WRONG_APP UNKNOWN_APP FREEZE=1 LOST_ACK=1 FALSE_REFUSAL=1 FILL_APP=1"),
    holds("app unknown, rekey", "ROTATE WRONG_APP UNKNOWN_APP FREEZE=1 LOST_ACK=1 REKEY=1"),
    holds("app unknown, stale row", "ROTATE WRONG_APP UNKNOWN_APP STALE_ROW=1"),
    holds(
        "foreign token of another app", "ROTATE WRONG_APP NEW_APP FREEZE=1 LOST_ACK=1 FOREIGN_TOKEN=1 FALSE_REFUSAL=1"
    ),
    holds(
        "reconnect with another app",
        "ROTATE WRONG_APP UNKNOWN_APP NEW_APP FREEZE=1 LOST_ACK=1 DISCONNECT=1 RECONNECT=1",
    ),
    # Either of two rules is enough in these; "without" below takes out both.
    holds("rekey under a lease", "ROTATE WITHOUT_REKEY_LEASE FREEZE=1 LOST_ACK=1 REKEY=1"),
    holds("rekey without a second look", "ROTATE WITHOUT_SECOND_LOOK FREEZE=1 REKEY=1"),
    without("LEASE", ONE_REQUEST, "ROTATE"),
    without("LOCKED_ROW", ONE_REQUEST, "ROTATE"),
    without("TIME_AFTER_LOCK", ONE_REQUEST, "ROTATE"),
    without("VOID_LEASE", IN_TIME, "ROTATE LEASE=2 CLOCK_BACK=1"),
    without("DEADLINE_FROM_ASKING", ONE_REQUEST, "ROTATE"),
    without("DEADLINE_FROM_ASKING", OUTLASTS, "ROTATE LEASE=2"),
    without("DEADLINE_CHECK", ONE_REQUEST, "ROTATE"),
    without("ANSWER_COUNTS", ONLY_GOOD, "ROTATE FREEZE=1"),
    without("OWN_LEASE", ONE_REQUEST, "LOST_ACK=1"),
    without("CAS", NEWER, "ROTATE RECONNECT=1"),
    without("LATER_END", NEWER, "FREEZE=1"),
    without("CONTENT", NEWER, "ROTATE FOREIGN_TOKEN=1"),
    without("STATE_ON_USER", ONE_REQUEST, "ROTATE FOREIGN_INSERT=1"),
    without("SECOND_LOOK REMEMBERED_UNSAVED", ONLY_GOOD, "ROTATE REKEY=1"),
    without("REKEY_LEASE CARRY", ONE_REQUEST, "ROTATE REKEY=1"),
    without("GONE_BACK", FINAL, "ROTATE FAILOVER=1"),
    without("SAVES", ONLY_GOOD, "ROTATE FAILOVER=1 CRASH=1"),
    without("REPLACED", ONLY_GOOD, "ROTATE STALE_ROW=1"),
    without("FAMILY", NEWER, "ROTATE FAILOVER=1 FOREIGN_TOKEN=1"),
    without("PLAIN", FINAL, "ROTATE STALE_ROW=1 REKEY=1"),
    without("REMEMBERED_UNSAVED", ONLY_GOOD, "ROTATE FAILOVER=1"),
    without("UNSAVED_FIRST", NOT_REPLACED, "ROTATE"),
    without("PROVISIONAL", FINAL, "ROTATE FALSE_REFUSAL=1"),
    without("LAPSED", FINAL, "ROTATE FREEZE=1 FALSE_REFUSAL=1"),
    without("JUST_SAVED", ONE_A_MINUTE, "ROTATE STORM"),
    without("APP", OWN_TURN, "ROTATE WRONG_APP"),
    without("APP_WRITTEN", OWN_TURN, "ROTATE WRONG_APP UNKNOWN_APP"),
    without("APP_OF_ONE_TOKEN", OWN_TURN, "ROTATE WRONG_APP NEW_APP FOREIGN_TOKEN=1"),
    without("CARRY", OWN_TURN, "ROTATE WRONG_APP REKEY=1"),
    without("REFUSER", OWN_REFUSAL, "WRONG_APP UNKNOWN_APP"),
    without("REFUSER", OWN_REFUSAL, "ROTATE WRONG_APP UNKNOWN_APP FILL_APP=1"),
    without("REFUSED_BY", HEARD, "ROTATE WRONG_APP UNKNOWN_APP"),
    without("COUNTS_ANEW", FINAL, "ROTATE WRONG_APP UNKNOWN_APP FALSE_REFUSAL=1"),
    without("OWN_OPINION", FINAL, "ROTATE WRONG_APP UNKNOWN_APP FALSE_REFUSAL=1"),
    without("OWN_OPINION", HEARD, "ROTATE WRONG_APP UNKNOWN_APP FALSE_REFUSAL=1"),
    without("FILL_CLEARS", HEARD, "ROTATE WRONG_APP UNKNOWN_APP FILL_APP=1"),
    holds("stale row, freeze, lost ack", "ROTATE FREEZE=1 LOST_ACK=1 STALE_ROW=1", big=True),
    holds("stale row, no rotation", "FREEZE=1 LOST_ACK=1 STALE_ROW=1", big=True),
    holds("stale row, rekey", "ROTATE STALE_ROW=1 REKEY=1", big=True),
    holds("stale row, foreign token", "ROTATE STALE_ROW=1 FOREIGN_TOKEN=1", big=True),
    holds("failover, foreign token", "ROTATE LOST_ACK=1 FAILOVER=1 FOREIGN_TOKEN=1", big=True),
    holds("failover, rekey", "ROTATE LOST_ACK=1 FAILOVER=1 REKEY=1", big=True),
    holds("failover, reconnect", "ROTATE FAILOVER=1 RECONNECT=1", big=True),
    holds("foreign end and token", "ROTATE FREEZE=1 LOST_ACK=1 FOREIGN_END=1 FOREIGN_TOKEN=1", big=True),
    holds("three processes", "N=3 SENDS=1 ROTATE LOST_ACK=1", big=True),
    holds("three processes, freeze", "N=3 ROTATE FREEZE=1", big=True),
    holds("three processes, no rotation", "N=3 SENDS=1 FREEZE=1", big=True),
    holds("three processes, refusals", "N=3 SENDS=1 ROTATE FALSE_REFUSAL=1", big=True),
    holds("three processes, failover", "N=3 SENDS=1 ROTATE FAILOVER=1", big=True),
    holds("app unknown, failover, crash", "ROTATE WRONG_APP UNKNOWN_APP FREEZE=1 FAILOVER=1 CRASH=1", big=True),
    holds("app unknown, failover, rekey", "ROTATE WRONG_APP UNKNOWN_APP LOST_ACK=1 FAILOVER=1 REKEY=1", big=True),
    holds(
        "failover, foreign token of another app",
        "ROTATE WRONG_APP NEW_APP FREEZE=1 FAILOVER=1 FOREIGN_TOKEN=1",
        big=True,
    ),
    holds("several apps", "N=3 ROTATE WRONG_APP BOTH_APPS UNKNOWN_APP FREEZE=1 FALSE_REFUSAL=1", big=True),
    holds(
        "several apps, no rotation",
        "N=3 WRONG_APP BOTH_APPS UNKNOWN_APP FREEZE=1 LOST_ACK=1 FALSE_REFUSAL=1",
        big=True,
    ),
    holds("several apps, failover", "N=3 SENDS=1 ROTATE WRONG_APP BOTH_APPS UNKNOWN_APP FAILOVER=1", big=True),
)


class Groups:
    """The process groups that run now. Each child leads one, and all are killed when this program ends."""

    def __init__(self) -> None:
        self._running: set[int] = set()
        self._lock = threading.Lock()
        self._ended = False
        # Where the system can do it, a child also dies when this program is killed.
        self._guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []

    def run(self, command: list[str], directory: Path, seconds: float) -> tuple[str, int | None]:
        """Return the output of `command` and its exit code, None where it took longer than `seconds`."""
        process = self._start(command, directory)
        if process is None:
            return "", None
        with process:
            try:
                output, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                self._kill(process.pid)
                return process.communicate()[0], None
            finally:
                self._running.discard(process.pid)
        return output, process.returncode

    def end(self) -> None:
        """Kill what runs and start nothing more."""
        with self._lock:
            self._ended = True
            for group in tuple(self._running):
                self._kill(group)

    def _start(self, command: list[str], directory: Path) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._ended:
                return None
            process = subprocess.Popen(  # noqa: S603 - a fixed command without a shell
                [*self._guard, *command],
                cwd=directory,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            self._running.add(process.pid)
            return process

    @staticmethod
    def _kill(group: int) -> None:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            return


GROUPS = Groups()


def verify(configuration: Configuration) -> Outcome:
    """Run Spin on `configuration` in a temporary directory, which is removed."""
    with tempfile.TemporaryDirectory(prefix="spotconn-model-") as name:
        return _verify_in(Path(name), configuration)


def _verify_in(directory: Path, configuration: Configuration) -> Outcome:
    seconds = BIG_SECONDS if configuration.big else SMALL_SECONDS
    megabytes = BIG_MEGABYTES if configuration.big else SMALL_MEGABYTES
    started = time.monotonic()
    definitions = [f"-D{switch}" for switch in configuration.switches.split()]
    # The processes have a "provided" clause, which partial order reduction does not allow.
    # A configuration that must fail does so after few states, so the time of the compiler counts more.
    optimize = "-O0" if configuration.breaks else "-O2"
    limits = ["-DSAFETY", "-DNOREDUCE", "-DCOLLAPSE", f"-DMEMLIM={megabytes}"]
    for command in (
        ["spin", "-a", *definitions, str(MODEL)],
        ["gcc", optimize, "-w", *limits, "-o", "pan", "pan.c"],
    ):
        output, code = GROUPS.run(command, directory, seconds)
        if code != 0:
            return Outcome(0, 0, time.monotonic() - started, None, f"{command[0]} failed:\n{output}")
    # -E: a model that has run out of requests stands still, which is no error.
    output, code = GROUPS.run(["./pan", "-E", f"-m{MAX_DEPTH}"], directory, seconds)
    return read_report(output, code, time.monotonic() - started)


def read_report(output: str, code: int | None, seconds: float) -> Outcome:
    """Return what the output of the verifier says."""
    states = re.search(r"^\s*(\d+) states, stored", output, re.MULTILINE)
    depth = re.search(r"depth reached (\d+)", output)
    violated = re.search(r"assertion violated (\w+)", output)
    return Outcome(
        int(states[1]) if states else 0,
        int(depth[1]) if depth else 0,
        seconds,
        violated[1] if violated else None,
        None if violated else _trouble(output, code),
    )


def _trouble(output: str, code: int | None) -> str | None:
    if code is None:
        return "took too long"
    # Spin says so of a search that ran out of depth or of memory.
    if "max search depth too small" in output or "Search not completed" in output:
        return "truncated"
    return None if re.search(r"errors: 0\b", output) else f"the verifier ended with {code}:\n{output}"


def verdict(configuration: Configuration, outcome: Outcome) -> tuple[bool, str]:
    """Return whether `outcome` is the expected one, and the words for it."""
    if outcome.trouble:
        return False, outcome.trouble
    if outcome.violated == configuration.breaks:
        return True, f"breaks {outcome.violated}, as it must" if outcome.violated else "holds"
    expected = f"breaks {configuration.breaks}" if configuration.breaks else "holds"
    found = f"it breaks {outcome.violated}" if outcome.violated else "it holds"
    return False, f"expected: {expected}; {found}"


def check_all(configurations: Iterable[Configuration]) -> int:
    """Print one line for each configuration and return the number of unexpected results."""
    failures = 0
    print(f"{'configuration':40} {'states':>10} {'depth':>7} {'seconds':>7}  result")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(verify, configuration): configuration for configuration in configurations}
        try:
            for done in as_completed(running):
                failures += not report(running[done], done.result())
        finally:
            GROUPS.end()
            pool.shutdown(wait=False, cancel_futures=True)
    return failures


def report(configuration: Configuration, outcome: Outcome) -> bool:
    """Print the line of `configuration` and return whether `outcome` is the expected one."""
    expected, words = verdict(configuration, outcome)
    figures = f"{outcome.states:>10,} {outcome.depth:>7,} {outcome.seconds:>7.1f}"
    print(f"{configuration.name:40} {figures}  {'' if expected else 'FAILED: '}{words}", flush=True)
    return expected


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main(arguments: list[str]) -> int:
    """Run the configurations that `arguments` name; return the exit code."""
    if arguments not in ([], ["small"], ["all"]):
        print("usage: check.py [small|all]", file=sys.stderr)
        return 2
    missing = [program for program in ("spin", "gcc") if shutil.which(program) is None]
    if missing:
        packages = " ".join(missing)
        print(f"The model needs {packages}. On Debian: apt-get install {packages}", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    started = time.monotonic()
    failures = check_all(each for each in CONFIGURATIONS if arguments == ["all"] or not each.big)
    print(f"{failures} unexpected results; {time.monotonic() - started:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
