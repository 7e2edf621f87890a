"""Examine the settings and the database that they name, for `spotconn doctor`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

from spotconn._command.apps import check_apps, client_finding, other_apps_finding
from spotconn._command.checks import CHECKS
from spotconn._command.finding import Finding
from spotconn._command.probe import Probe
from spotconn._database.acquire import acquire
from spotconn._database.pool import close_pool, open_pool
from spotconn._settings import read_database_url, read_encryption
from spotconn._spotify.redirect import checked_redirect_uri
from spotconn.cipher import cipher_for
from spotconn.errors import ConfigurationError, SpotconnError


async def examine(environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Yield the findings about the settings, then those about the database. Nothing is changed.

    Args:
        environ: as `os.environ`.
    """
    for finding in _settings(environ):
        yield finding
    try:
        dsn = read_database_url(environ)
        pool = await open_pool(dsn, {"max_size": 1, "statement_cache_size": 0})
    except SpotconnError as error:
        yield Finding(state="fail", subject="database", text=str(error), remedy="correct DATABASE_URL")
        return
    try:
        async with acquire(pool) as session:
            probe = Probe(session, dsn)
            for subject, check in CHECKS.items():
                yield await _run_check(subject, check(probe))
            yield await _run_check("apps", check_apps(probe, environ))
    finally:
        await close_pool(pool)


async def _run_check(subject: str, check: Awaitable[Finding]) -> Finding:
    try:
        return await check
    except SpotconnError as error:
        return Finding(state="fail", subject=subject, text=str(error))


def _settings(environ: Mapping[str, str]) -> Iterator[Finding]:
    yield _setting("Spotify app", lambda: client_finding(environ))
    yield _setting("other apps", lambda: other_apps_finding(environ))
    yield _setting("redirect URI", lambda: _redirect_uri(environ.get("SPOTIFY_REDIRECT_URI", "").strip()))
    yield _setting("encryption keys", lambda: _keys(environ))


def _setting(subject: str, read: Callable[[], Finding]) -> Finding:
    try:
        return read()
    except ConfigurationError as error:
        return Finding(state="fail", subject=subject, text=str(error), remedy="correct the variable")


def _redirect_uri(uri: str) -> Finding:
    subject = "redirect URI"
    if not uri:
        return Finding(state="skip", subject=subject, text="SPOTIFY_REDIRECT_URI is not set; only connecting needs it")
    checked_redirect_uri(uri, name="SPOTIFY_REDIRECT_URI")
    return Finding(state="ok", subject=subject, text="of a form that Spotify accepts; it must be registered there")


def _keys(environ: Mapping[str, str]) -> Finding:
    settings = read_encryption(environ)
    cipher = cipher_for(settings["encryption_keys"], require_encrypted=settings["require_encrypted"])
    if cipher is None:
        return Finding(
            state="warn",
            subject="encryption keys",
            text="none: tokens are stored as they are",
            remedy="set SPOTCONN_ENCRYPTION_KEYS to what `spotconn keygen` prints, then run `spotconn rekey`",
        )
    return Finding(state="ok", subject="encryption keys", text=f"{', '.join(cipher.key_ids)}; the first encrypts")
