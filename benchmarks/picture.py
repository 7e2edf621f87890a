"""The picture for the README: what a token costs here and elsewhere, as bars in an SVG."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from benchmarks.table import shown


class Panel(NamedTuple):
    """Bars that are compared with each other.

    Attributes:
        title: above them.
        bars: what each shows, and the key of its microseconds; the first is the library.
    """

    title: str
    bars: tuple[tuple[str, str], ...]


PANELS = (
    Panel(
        "A fresh token that the process has",
        (
            ("spotconn", "warm_us"),
            ("the least a coroutine can do", "warm_limit_us"),
            ("tekore", "warm_tekore_us"),
            ("google-auth", "warm_google_auth_us"),
            ("authlib", "warm_authlib_us"),
        ),
    ),
    Panel(
        "A token from Postgres on the same host, under row level security",
        (
            ("spotconn", "cold_us"),
            ("asyncpg's fetchrow, without it", "cold_fetchrow_us"),
            ("BEGIN, SET LOCAL, SELECT, COMMIT", "cold_transaction_us"),
        ),
    ),
    Panel(
        "The same with 100 callers at once",
        (
            ("spotconn", "crowd_100_us"),
            ("a pool without reset, without it", "crowd_100_noreset_us"),
            ("asyncpg's pool, without it", "crowd_100_fetchrow_us"),
        ),
    ),
    Panel(
        "A token with Postgres 1 ms away",
        (("spotconn", "cold_1ms_us"), ("BEGIN, SET LOCAL, SELECT, COMMIT", "cold_transaction_1ms_us")),
    ),
)
WIDTH, BARS_X, BAR, LINE, HEAD = 760, 270, 380, 24, 44
STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #1f2328; }
  .head { font-weight: 600; }
  .small { font-size: 12px; fill: #57606a; }
  .card { fill: #ffffff; stroke: #d0d7de; }
  .ours { fill: #1a7f37; }
  .other { fill: #8c959f; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .small { fill: #9198a1; }
    .card { fill: #0d1117; stroke: #3d444d; }
    .ours { fill: #3fb950; }
    .other { fill: #656c76; }
  }
"""


def drawn(figures: Mapping[str, float]) -> str:
    """The whole picture."""
    height = 16 + sum(HEAD + LINE * len(panel.bars) for panel in PANELS)
    top = 0
    parts: list[str] = []
    for panel in PANELS:
        parts += _panel(panel, figures, top)
        top += HEAD + LINE * len(panel.bars)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-labelledby="title">\n<title id="title">What a token costs</title>\n<style>{STYLE}</style>\n'
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _panel(panel: Panel, figures: Mapping[str, float], top: int) -> Iterator[str]:
    yield f'<text class="head" x="24" y="{top + 30}">{panel.title}</text>'
    longest = max(figures[key] for _, key in panel.bars)
    for number, (label, key) in enumerate(panel.bars):
        y = top + HEAD + LINE * number
        width = max(BAR * figures[key] / longest, 1)
        kind = "other" if number else "ours"
        yield f'<text class="small" x="{BARS_X - 10}" y="{y + 13}" text-anchor="end">{label}</text>'
        yield f'<rect class="{kind}" x="{BARS_X}" y="{y + 1}" width="{width:.1f}" height="16" rx="2"/>'
        yield f'<text class="small" x="{BARS_X + width + 8:.1f}" y="{y + 13}">{_time(figures[key])}</text>'


def _time(microseconds: float) -> str:
    if microseconds >= 1000:  # noqa: PLR2004
        return f"{shown(microseconds / 1000)} ms"
    return f"{shown(microseconds)} µs"
