"""What a failure of the network or of TLS becomes, with real sockets."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from spotconn import (
    ConfigurationError,
    SpotifyAccounts,
)
from spotconn._spotify.failures import failure_of
from spotconn._spotify.marks import Mark, has_mark
from support.refused_refresh import GRANT, failure, passes
from support.tls import certificate, damaging_relay, tls_front
from support.upstream import answer, upstream


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    return certificate(tmp_path)


async def test_a_certificate_that_does_not_verify(pem: Path) -> None:
    """It is for an engineer, who reads what to do; the request is not sent."""
    async with upstream(answer(200, GRANT)) as served, tls_front(served.port, pem) as port:
        error = await failure(SpotifyAccounts("app", accounts_url=f"https://127.0.0.1:{port}"))
        assert not served.requests
    assert type(error) is ConfigurationError
    assert "does not verify (OpenSSL's code 18)" in str(error)
    assert "SSL_CERT_FILE" in str(error)


async def test_a_certificate_for_another_host(pem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trusted certificate that is not for the host is told by another code."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    async with upstream(answer(200, GRANT)) as served, tls_front(served.port, pem) as port:
        error = await failure(SpotifyAccounts("app", accounts_url=f"https://localhost:{port}"))
    assert type(error) is ConfigurationError
    assert "code 62" in str(error)


@asynccontextmanager
async def answering(data: bytes) -> AsyncGenerator[str]:
    """The https URL of a server that answers the first bytes of TLS with `data`."""

    async def answer_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(data)
        writer.close()

    async with await asyncio.start_server(answer_hello, "127.0.0.1", 0) as server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_no_version_of_tls_in_common() -> None:
    """TLS settings with which no connection can be made are for an engineer."""
    async with answering(b"\x15\x03\x01\x00\x02\x02\x46") as url:  # the alert protocol_version (RFC 8446, section 6)
        error = await failure(SpotifyAccounts("app", accounts_url=url))
    assert type(error) is ConfigurationError
    assert "no version of TLS or no cipher in common (TLSV1_ALERT_PROTOCOL_VERSION)" in str(error)


async def test_a_refused_port_and_an_unknown_name() -> None:
    """Both pass by themselves and are told apart."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        refused = await failure(SpotifyAccounts("app", accounts_url=f"http://127.0.0.1:{deaf.getsockname()[1]}"))
    unknown = await failure(SpotifyAccounts("app", accounts_url="https://spotify.invalid"))
    assert passes(refused)
    assert passes(unknown)
    assert "no answer from 127.0.0.1: the connection was refused" in str(refused)
    assert "no answer from spotify.invalid: its name, or that of a proxy, cannot be resolved" in str(unknown)


async def test_what_answers_speaks_no_tls() -> None:
    """Plain HTTP in place of TLS, as of a captive portal, is named."""
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        error = await failure(SpotifyAccounts("app", accounts_url=url))
    assert passes(error)
    assert "TLS failed (WRONG_VERSION_NUMBER)" in str(error)


@pytest.mark.parametrize("from_the_start", [True, False], ids=["in the handshake", "in the answer"])
async def test_a_damaged_tls_record(pem: Path, from_the_start: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    """A record that was altered on the way is named, also where httpx does not know the error."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    async with (
        upstream(answer(200, GRANT)) as served,
        tls_front(served.port, pem) as port,
        damaging_relay(port, lambda: from_the_start or bool(served.requests)) as relay,
    ):
        error = await failure(SpotifyAccounts("app", accounts_url=f"https://127.0.0.1:{relay}"))
        assert bool(served.requests) is not from_the_start
    assert passes(error)
    assert "TLS failed (" in str(error)


def test_causes_are_found_wherever_they_hang() -> None:
    """In groups, behind other causes, and in a circle."""
    refused = ConnectionRefusedError()
    group = ExceptionGroup("all attempts", [OSError("x"), refused])
    outer = httpx.ConnectError("failed")
    outer.__cause__ = group
    refused.__context__ = outer
    assert "refused" in str(failure_of(outer, "host"))
    assert has_mark(failure_of(outer, "host"), Mark.NOT_PROCESSED)
