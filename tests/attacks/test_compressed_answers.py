"""Something on the way to Spotify answers with what unpacks into far more than is read."""

import gzip
import json
import tracemalloc
import zlib

import pytest

from spotconn import SpotifyAccounts
from support.refused_refresh import GRANT, SECRET, failure
from support.upstream import answer, upstream

BODY = json.dumps(GRANT | {"refresh_token": "rotated"}).encode()
MEGABYTE = 1024 * 1024
HALF = len(BODY) // 2
PACKED = {
    "plain": ("identity", BODY),
    "gzip": ("gzip", gzip.compress(BODY)),
    "x-gzip": ("X-GZip", gzip.compress(BODY)),
    "two members": ("gzip", gzip.compress(BODY[:HALF]) + gzip.compress(BODY[HALF:])),
    "no trailer": ("gzip", gzip.compress(BODY)[:-8]),
    "something after it": ("gzip", gzip.compress(BODY) + b"\0\0garbage"),
}
BOMB = gzip.compress(b" " * (64 * MEGABYTE))
UNREADABLE = {
    "a bomb": ("gzip", BOMB, "over 65536 bytes"),
    "a bomb in a bomb": ("gzip, gzip", gzip.compress(BOMB), "another way than once with gzip"),
    "gzip, identity": ("gzip, identity", gzip.compress(BODY), "another way than once with gzip"),
    "deflate": ("deflate", zlib.compress(BODY), "another way than once with gzip"),
    "br": ("br", BODY, "another way than once with gzip"),
    "a thousand": (", ".join(["gzip"] * 1000), BODY, "another way than once with gzip"),
    "corrupt": ("gzip", gzip.compress(BODY)[:-8] + b"\xff" * 8, "its encoding is broken"),
    "cut off": ("gzip", gzip.compress(BODY)[:30], "unreadable answer"),
    "many members": ("gzip", gzip.compress(b" " * 60_000) * 100, "over 65536 bytes"),
}


@pytest.mark.parametrize(("encoding", "body"), PACKED.values(), ids=PACKED)
async def test_a_rotated_token_in_gzip_is_read(encoding: str, body: bytes) -> None:
    """What a proxy has compressed once is read, so that the only good refresh token is not thrown away."""
    async with (
        upstream(answer(200, body, Content_Encoding=encoding)) as served,
        SpotifyAccounts("app", accounts_url=served.url) as accounts,
    ):
        assert (await accounts.refresh(SECRET)).refresh_token == "rotated"


@pytest.mark.parametrize(("encoding", "body", "text"), UNREADABLE.values(), ids=UNREADABLE)
async def test_what_unpacks_into_more_costs_no_memory(encoding: str, body: bytes, text: str) -> None:
    """A bomb, and every other encoding, is an unreadable answer, for which less than 2 MB are taken."""
    async with upstream(answer(200, body, Content_Encoding=encoding)) as served:
        accounts = SpotifyAccounts("app", accounts_url=served.url)
        tracemalloc.start()
        try:
            error = await failure(accounts)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert text in str(error)
    assert peak < 2 * MEGABYTE
