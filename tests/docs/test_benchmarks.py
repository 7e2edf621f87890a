"""The benchmarks run, give every figure that has a goal, and compare as they say. What the figures are is no test."""

import asyncio
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

import pytest

from benchmarks import page, table
from benchmarks.children import child
from benchmarks.goals import GOALS, REPORTED, Goal
from benchmarks.growth_page import MEASURED
from benchmarks.imports import fresh
from benchmarks.rounds import Rounds, each, interleaved, noting, together
from support.pgbouncer import program

ROOT = Path(__file__).parents[2]
KEYS = {
    "warm_vs_limit",
    "warm_vs_authlib",
    "cold_vs_fetchrow",
    "cold_vs_held_fetchrow",
    "cold_vs_transaction_1ms",
    "crowd_100_vs_pool_fetchrow",
    "crowd_10_vs_pool_fetchrow",
    "crowd_100_vs_noreset_fetchrow",
    "crowd_cpu_vs_fetchrow",
    "round_trips_read",
    "round_trips_refresh",
    "round_trips_read_pooled",
    "first_token_round_trips",
    "storm_calls_per_user",
    "storm_vs_httpx",
    "storm_vs_httpx2",
    "refresh_writes_vs_silent",
    "starved_read_p99_ms",
    "rows_1m_vs_1k",
    "bytes_per_cached_user",
    "import_overhead",
    "decrypt_share",
    *(
        f"tenant_{name}{level}"
        for name in ("values", "infinity", "lock", "answers", "codes")
        for level in ("", "_locked_down")
    ),
}


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_quick_form_gives_every_figure(tmp_path: Path) -> None:
    """It ends with 0, prints each figure, and writes them with the versions of the peers, and the picture."""
    program()  # without PgBouncer nothing behind it can be measured
    pytest.importorskip("httpx2")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=290)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results.keys() == KEYS | {"machine", "peers", "extra"}
    figures = {key: results[key] for key in KEYS} | results["extra"]
    assert [key for key, value in figures.items() if not (math.isfinite(value) and value > 0)] == []
    assert [key for key in figures if f"\n{key} " not in done.stdout] == []
    assert [key for keys, *_ in MEASURED for key in keys.split(", ") if key not in figures] == []
    assert {"authlib", "google-auth", "tekore"} < results["peers"].keys()
    assert results["storm_calls_per_user"] == 1
    assert (results["round_trips_read"], results["round_trips_refresh"]) == (1, 3)
    picture = ET.parse(tmp_path / "benchmarks.svg")
    tables = (tmp_path / "performance.md").read_text().partition(page.BEGIN)[2].partition(page.END)[0]
    assert [key for key in (*KEYS, *REPORTED) if tables.count(f"\n| `{key}` |") != 1] == []
    drawn = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"spotconn", "authlib", "tekore", "google-auth"} < drawn


def test_the_goals_are_those_of_the_project() -> None:
    """No figure is left out, none is there twice."""
    assert sorted(goal.key for goal in GOALS) == sorted(KEYS)


@pytest.mark.parametrize(
    ("bound", "reached"),
    [("at most", [True, True, False]), ("at least", [False, True, True]), ("exactly", [False, True, False])],
)
def test_a_goal_is_reached_or_missed(bound: Literal["at most", "at least", "exactly"], reached: list[bool]) -> None:
    """A figure below, at and above its limit."""
    goal = Goal("key", "what", bound, 2)
    assert [goal.reached(value) for value in (1.9, 2, 2.1)] == reached


def test_a_run_names_the_goals_that_it_misses() -> None:
    """The last line of the table names them, each once; where none is missed there is no such line."""
    good = {goal.key: goal.limit for goal in GOALS}
    assert table.missed(good) == []
    assert "MISSED" not in "\n".join(table.lines(good))
    bad = good | {"warm_vs_limit": 1.41, "storm_calls_per_user": 1.5}
    assert table.missed(bad) == ["warm_vs_limit", "storm_calls_per_user"]
    assert list(table.lines(bad))[-1] == "\nMISSED: warm_vs_limit, storm_calls_per_user"


def test_a_ratio_is_the_median_within_the_rounds() -> None:
    """A slow round counts once, for both alike: 2, 3 and 1.5 make 2, where the medians alone would make 3."""
    assert Rounds({"one": [2, 30, 3], "other": [1, 10, 2]}).ratio("one", "other") == 2


def test_the_page_takes_the_figures_of_a_run() -> None:
    """What stands between the marks gives way to the new tables; the rest of the page stays, also a second time."""
    figures = dict.fromkeys([*KEYS, *REPORTED, *page.TIMES, *(f"uvloop_{key}" for key in page.TIMES)], 1.0)
    old = f"before\n\n{page.BEGIN}\nold\n{page.END}\n\nafter\n"
    new = page.refreshed(old, figures, "3.11.0")
    assert new.startswith("before\n\n<!--")
    assert new.endswith("-->\n\nafter\n")
    assert "\nold\n" not in new
    assert page.refreshed(new, figures, "3.11.0") == new
    text = (ROOT / "docs" / "performance.md").read_text()
    assert (text.count(page.BEGIN), text.count(page.END)) == (1, 1)


async def test_an_import_is_timed_with_its_bytecode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling the source is no part of an import, also where the environment keeps Python from writing bytecode."""
    (tmp_path / "timed.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert await fresh("import timed")() > 0
    assert [path.name.split(".")[0] for path in tmp_path.glob("__pycache__/*.pyc")] == ["timed"]


@pytest.mark.long
async def test_contenders_take_turns() -> None:
    """Each round begins with another one, and the first does not count."""
    turns: list[str] = []

    async def turn(name: str) -> None:
        turns.append(name)

    rounds = await interleaved({"a": each(turn, ["a"].copy), "b": each(turn, ["b"].copy)}, 3)
    assert turns == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert [len(seconds) for seconds in rounds.seconds.values()] == [3, 3]


async def test_a_crowd_calls_at_once() -> None:
    """Each argument is used once, and there are as many calls under way as there are callers."""
    called: list[int] = []
    under_way = 0
    most = 0

    async def call(number: int) -> None:
        nonlocal under_way, most
        called.append(number)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    assert await together(call, range(10), 4) > 0
    assert (sorted(called), most) == (list(range(10)), 4)


async def test_another_clock_is_noted_beside_a_round() -> None:
    """It is read before and after each round, and the first round does not count."""
    noted: list[float] = []

    async def run() -> float:
        return 1.0

    rounds = await interleaved({"a": noting(run, iter(range(0, 60, 10)).__next__, noted, calls=5)}, 2)
    rounds.add("a_cpu", noted)
    assert rounds.seconds == {"a": [1.0, 1.0], "a_cpu": [2.0, 2.0]}


async def test_the_delay_is_added_each_way_and_keeps_the_order() -> None:
    """What goes through the proxy comes back no sooner than twice the delay, whole and in its order."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with child("delay", port, 0.05) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", await proxy.read())
            begun = time.monotonic()
            for part in (b"first ", b"second ", b"third"):
                writer.write(part)
                await asyncio.sleep(0)
            assert await reader.readexactly(18) == b"first second third"
            assert time.monotonic() - begun >= 0.1
            writer.close()
            assert await reader.read() == b""
            await writer.wait_closed()
