"""Examine the settings and the database that they name, for `spotconn doctor`."""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping

from spotconn._command.apps import check_apps, client_finding, other_apps_finding
from spotconn._command.checks import CHECKS, Check
from spotconn._command.decryption import check_decryption
from spotconn._command.finding import Finding
from spotconn._command.probe import Probe
from spotconn._database.acquire import acquire
from spotconn._database.idle_sessions import is_open
from spotconn._database.pool import close_pool, open_pool
from spotconn._settings import read_database_url, read_encryption, read_timeout
from spotconn._spotify.redirect import checked_redirect_uri
from spotconn.cipher import cipher_for
from spotconn.errors import ConfigurationError, SpotconnError

DATABASE = "database"
"""The subject of the finding about the way there."""


async def examine(environ: Mapping[str, str]) -> AsyncGenerator[Finding]:
    """Yield the findings about the settings, then those about the database. Nothing is changed.

    Args:
        environ: as `os.environ`.
    """
    for finding in _settings(environ):
        yield finding
    try:
        options = {"max_size": 1, "statement_cache_size": 0}
        pool = await open_pool(read_database_url(environ), options, seconds=read_timeout(environ))
    except Exception as error:  # noqa: BLE001  a finding, never a traceback
        yield _failed(DATABASE, error, remedy="correct DATABASE_URL")
        return
    try:
        async with acquire(pool) as session:
            probe = Probe(session)
            for subject, check in _checks(environ).items():
                yield await _run_check(probe, subject, check)
    except SpotconnError as error:
        yield _failed(DATABASE, error)
    finally:
        await close_pool(pool)


def _checks(environ: Mapping[str, str]) -> dict[str, Check]:
    """Return the checks of the database, then those that compare it with the settings."""
    compared: dict[str, Check] = {
        "decryption": lambda probe: check_decryption(probe, environ),
        "apps": lambda probe: check_apps(probe, environ),
    }
    return CHECKS | compared


async def _run_check(probe: Probe, subject: str, check: Check) -> Finding:
    try:
        async with probe.rolled_back():
            return await check(probe)
    except Exception as error:  # noqa: BLE001  a finding, never a traceback
        return _failed(subject, error) if is_open(probe.session) else _lost(subject)


def _lost(subject: str) -> Finding:
    return Finding(
        state="fail",
        subject=subject,
        text="not examined: the connection to the database was lost",
        remedy="run spotconn doctor again once the database answers",
    )


def _failed(subject: str, error: Exception, *, remedy: str | None = None) -> Finding:
    if isinstance(error, SpotconnError):
        return Finding(
            state="fail",
            subject=subject,
            text=str(error),
            remedy=remedy if isinstance(error, ConfigurationError) else None,
        )
    # The text of another error may hold a row or a part of the URL.
    return Finding(
        state="fail",
        subject=subject,
        text=f"not examined: unexpected {type(error).__name__}",
        remedy="run spotconn doctor again, and report it if it comes again",
    )


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
    text = f"{', '.join(cipher.key_ids)}; the first encrypts"
    if settings["require_encrypted"]:
        return Finding(state="ok", subject="encryption keys", text=text)
    return Finding(
        state="warn",
        subject="encryption keys",
        text=f"{text}; a token that somebody stores in plain text in place of an encrypted one is taken",
        remedy="run `spotconn rekey`, then set SPOTCONN_REQUIRE_ENCRYPTED=1 in every process",
    )
