"""The dashboard and the alert rules ask for what is exported, under the names that Prometheus gives it."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import asyncpg
import promql_parser
import pytest
import yaml
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY

import spotconn
from spotconn import ConnectionStore, SpotifyAccounts, SpotifyUnavailable, TokenManager
from spotconn.events import AppRefusal
from spotconn.telemetry import instrument
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.watched_store import WatchedStore, everything

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD, ALERTS = DOCS / "telemetry" / "dashboard.json", DOCS / "telemetry" / "alerts.yaml"
OF_PROMETHEUS = {"job", "instance", "le"}
OUTCOMES = {"cache", "fresh", "refreshed", "waited", "error"}


def of_the_dashboard() -> Iterator[str]:
    """The expressions of all panels and variables, with Grafana's variables filled in."""
    board = json.loads(DASHBOARD.read_text())
    targets = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries = [variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    targets += [re.sub(r"^label_values\((\w+), job\)$", r"\1", query) for query in queries]
    for expression in targets:
        yield expression.replace("$__rate_interval", "5m").replace("$job", ".*")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


EXPRESSIONS = [*of_the_dashboard(), *(str(rule["expr"]) for rule in rules())]


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """All that an expression selects; an error in its grammar is a ValueError."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


async def go_back(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID
) -> None:
    """Put an earlier row back, as a failover does that loses commits; it is mended."""
    before = (await connect(store, spotify, user, ttl=-1)).texts
    tokens._cache.invalidate(user)
    await tokens.get_valid_token(user)
    query = "update public.spotify_connections set access_token = $2, refresh_token = $3 where user_id = $1"
    await admin.execute(query, user, before.access_token, before.refresh_token)
    tokens._source.refresher.saved.compare()
    comparing = tokens._source.refresher.saved._comparing
    assert comparing is not None
    await asyncio.wait([comparing])


@pytest.fixture
async def series(
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    users: list[UUID],
    admin: asyncpg.Connection,
) -> dict[str, set[str]]:
    """The labels of every series that Prometheus would find, by name."""
    watched = WatchedStore(store.pool._pool)
    provider = MeterProvider([PrometheusMetricReader()], shutdown_on_exit=False)
    async with (
        SpotifyAccounts("demo-client", "demo-secret", accounts_url="http://127.0.0.1:1") as unreachable,
        TokenManager(watched, accounts) as tokens,
        TokenManager(store, unreachable, refresh_timeout=0.2, lease=2) as cut_off,
    ):
        for manager in (tokens, cut_off):
            instrument(manager, meter_provider=provider)
        await everything(tokens, watched, spotify, users)
        await go_back(tokens, store, spotify, admin, users[1])
        await connect(store, spotify, users[2], ttl=-1)
        with pytest.raises(SpotifyUnavailable):
            await cut_off.get_valid_token(users[2])
    found: dict[str, set[str]] = {}
    for family in REGISTRY.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    provider.shutdown()
    return found


async def test_every_series_that_is_asked_for_is_exported(series: dict[str, set[str]]) -> None:
    """In the dashboard and in the rules: its name, and the labels it is chosen by; and each metric is shown."""
    selected = [selector for expression in EXPRESSIONS for selector in selectors(expression)]
    assert {selector.name for selector in selected} <= series.keys()
    for selector in selected:
        labels = {matcher.name for matcher in selector.matchers.matchers}
        assert labels <= series[str(selector.name)] | OF_PROMETHEUS, str(selector)
    shown = {re.sub("_(bucket|count|sum)$", "", str(selector.name)) for selector in selected}
    ours = {re.sub("_(bucket|count|sum)$", "", name) for name in series if name.startswith("spotconn_")}
    assert shown == {name for name in ours if not name.endswith("_created")}


async def test_every_label_that_is_grouped_by_is_exported(series: dict[str, set[str]]) -> None:
    """In the dashboard and in the rules, also in legends and summaries."""
    known = OF_PROMETHEUS.union(*series.values())
    grouped = {label for expression in EXPRESSIONS for group in re.findall(r"by \((.*?)\)", expression)
               for label in group.split(", ")}  # fmt: skip
    legends = re.findall(r"\{\{(\w+)\}\}", DASHBOARD.read_text())
    summaries = re.findall(r"\$labels\.(\w+)", ALERTS.read_text())
    assert grouped
    assert legends
    assert summaries
    assert {*grouped, *legends, *summaries} <= known


def test_every_value_that_is_asked_for_can_occur() -> None:
    """The outcomes, the classes of errors and the reasons in the matchers are those that there are."""
    matchers = [
        one for expression in EXPRESSIONS for selector in selectors(expression) for one in selector.matchers.matchers
    ]
    outcomes = {value for one in matchers if one.name == "spotconn_outcome" for value in one.value.split("|")}
    errors = {value for one in matchers if one.name == "error_type" for value in one.value.split("|")} - {""}
    assert outcomes
    assert outcomes <= OUTCOMES
    assert errors
    assert errors <= set(spotconn.__all__)
    reasons = {value for one in matchers if one.name == "spotconn_reason" for value in one.value.split("|")}
    assert reasons
    assert reasons <= {*get_args(AppRefusal)}


def test_every_alert_is_explained() -> None:
    """It has a severity and a summary, and the guide tells what to do."""
    guide = (DOCS / "how-to" / "telemetry.md").read_text()
    assert len(rules()) > 5
    for rule in rules():
        assert str(rule["alert"]) in guide
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]


async def test_the_guide_lists_what_is_exported(series: dict[str, set[str]]) -> None:
    """Every metric is in the table of the guide, and no other."""
    listed = set(
        re.findall(r"^\| `(spotconn\.[a-z._]+)` \|", (DOCS / "how-to" / "telemetry.md").read_text(), re.MULTILINE)
    )
    names = {name.replace(".", "_") for name in listed}
    ours = {re.sub("(_seconds)?_(bucket|count|sum|total|created)$|_seconds$", "", name) for name in series}
    assert names == {name for name in ours if name.startswith("spotconn_")}


def test_the_dashboard_is_laid_out() -> None:
    """Panels have an id, a title and a place of their own, and all ask the chosen data source."""
    board = json.loads(DASHBOARD.read_text())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in board["panels"]}) >= 8
    for panel in board["panels"]:
        assert panel["title"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


@pytest.mark.parametrize("broken", ["sum(rate(x[5m])", "rate(spotconn_cache_entries)", "sum by (a) x{"])
def test_an_expression_that_prometheus_would_refuse_is_an_error(broken: str) -> None:
    """So the tests above would see one."""
    with pytest.raises(ValueError, match=r".+"):
        selectors(broken)
