"""What a server logs of a callback once the filter is there."""

import asyncio
import logging
import os
import re
import sys
from pathlib import Path

import httpx
import pytest

from spotconn.web import CallbackFilter

APP = """
import logging
from spotconn.web import CallbackFilter

for name in ("uvicorn.access", "gunicorn.access"):
    logging.getLogger(name).addFilter(CallbackFilter())

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})
"""
SECRETS = ("AQ-code-4711", "state-0815")
CALLBACK = "/spotify/callback?code=AQ-code-4711&state=state-0815&page=2"
ATOMS = '%(h)s "%(r)s" %(s)s U=%(U)s q=%(q)s f=%(f)s x=%({x-none}i)s'
GUNICORN = ("gunicorn", "--bind", "127.0.0.1:0", "--access-logfile", "-", "--access-logformat", ATOMS)
SERVERS = {
    "uvicorn": ("uvicorn", "--port", "0", "--lifespan", "off"),
    "gunicorn, its own worker": (*GUNICORN, "--worker-class", "asgi"),
    "gunicorn, uvicorn's worker": (*GUNICORN, "--worker-class", "uvicorn.workers.UvicornWorker"),
}


async def logged(folder: Path, *command: str) -> str:
    """What a server prints that is asked for a callback once, by a page whose own URL is one."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, "service:app", cwd=folder, env=os.environ | {"HOME": str(folder)},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    printed = b""
    try:
        async with asyncio.timeout(60):
            while not (found := re.search(rb"http://127\.0\.0\.1:(\d+)", printed)):
                line = await process.stdout.readline()
                assert line, printed
                printed += line
            url = found[0].decode()
            async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(retries=5), timeout=50) as client:
                assert (await client.get(url + CALLBACK, headers={"Referer": url + CALLBACK})).status_code == 204
            process.terminate()
            printed += await process.stdout.read()
            await process.wait()
            return printed.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.long
async def test_no_code_and_no_state_is_in_an_access_log(tmp_path: Path) -> None:
    """Of uvicorn, of gunicorn with a format of its own, and of gunicorn with uvicorn's worker; the rest is there."""
    (tmp_path / "service.py").write_text(APP)
    logs = await asyncio.gather(*(logged(tmp_path, *command) for command in SERVERS.values()))
    for name, log in zip(SERVERS, logs, strict=True):
        assert not [secret for secret in SECRETS if secret in log], name
        assert "/spotify/callback?code=-&state=-&page=2" in log, (name, log)
    assert "q=code=-&state=-&page=2 f=http" in logs[1]
    assert "x=-" in logs[1]


@pytest.mark.parametrize(
    ("message", "arguments", "logged"),
    [
        ("GET /callback?state=s&code=c#x", (), "GET /callback?state=-&code=-#x"),
        ('"GET %s" %d', ("/callback?code=c", 303), '"GET /callback?code=-" 303'),
        ("%(r)s %(n)d", ({"r": "GET /callback?error=access_denied&state=s HTTP/1.1", "n": 1},),
         "GET /callback?error=access_denied&state=- HTTP/1.1 1"),
        ("/callback?mycode=c&statement=s", (), "/callback?mycode=c&statement=s"),
        ("/callback?code=%s", ("c",), "/callback?code=c"),
    ],
)  # fmt: skip
def test_a_record_is_altered_in_its_urls_alone(message: str, arguments: tuple[object, ...], logged: str) -> None:
    """In a message, in its arguments and in a mapping of them; a format of the program's own is not broken."""
    record = logging.LogRecord("any", logging.INFO, "file", 1, message, arguments, None)
    assert CallbackFilter().filter(record)
    assert record.getMessage() == logged


async def test_it_needs_no_extra() -> None:
    """A service of Flask or Django has no Starlette."""
    code = "import sys; sys.modules['starlette'] = None; from spotconn.access_log import CallbackFilter"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
