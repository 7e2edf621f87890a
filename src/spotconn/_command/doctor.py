"""Examine the settings and the database that they name, for `spotconn doctor`."""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing

from spotconn._command.apps import check_apps, client_finding, other_apps_finding
from spotconn._command.checks import CHECKS, Check
from spotconn._command.decryption import check_decryption
from spotconn._command.examination import run_checks
from spotconn._command.finding import Finding, failed
from spotconn._command.online import not_asked, spotify_findings
from spotconn._command.probe import Probe
from spotconn._database.acquire import acquire
from spotconn._database.pool import close_pool, open_pool
from spotconn._settings import read_database_url, read_encryption, read_timeout
from spotconn._spotify.redirect import checked_redirect_uri
from spotconn.cipher import cipher_for
from spotconn.errors import ConfigurationError, SpotconnError

DATABASE = "database"
"""The subject of the finding about the way there."""
_UNSET = {
    "DATABASE_URL is not set": "set it to postgresql://user:password@host:port/database",
    "SPOTIFY_CLIENT_ID is not set": "set it to the id of an app in Spotify's dashboard; spotconn simulate has one "
    "to develop with",
}
"""What to do about variables that every service needs."""


async def examine(environ: Mapping[str, str], *, online: bool = False) -> AsyncGenerator[Finding]:
    """Yield the findings about the settings, then about Spotify, then about the database. Nothing is changed.

    Args:
        environ: as `os.environ`.
        online: whether to ask Spotify.
    """
    for finding in _settings(environ):
        yield finding
    for finding in await spotify_findings(environ) if online else [not_asked(environ)]:
        yield finding
    try:
        url, seconds = read_database_url(environ), read_timeout(environ)
    except ConfigurationError as error:
        yield _of_variable(DATABASE, error)
        return
    try:
        pool = await open_pool(url, {"max_size": 1, "statement_cache_size": 0}, seconds=seconds)
    except Exception as error:  # noqa: BLE001  a finding, never a traceback
        yield failed(DATABASE, error)
        return
    try:
        async with acquire(pool) as session, aclosing(run_checks(Probe(session), _checks(environ))) as findings:
            async for finding in findings:
                yield finding
    except SpotconnError as error:
        yield failed(DATABASE, error)
    finally:
        await close_pool(pool)


def _checks(environ: Mapping[str, str]) -> dict[str, Check]:
    """Return the checks of the database, then those that compare it with the settings."""
    compared: dict[str, Check] = {
        "decryption": lambda probe: check_decryption(probe, environ),
        "apps": lambda probe: check_apps(probe, environ),
    }
    return CHECKS | compared


def _settings(environ: Mapping[str, str]) -> Iterator[Finding]:
    checks: dict[str, Callable[[], Finding]] = {
        "Spotify app": lambda: client_finding(environ),
        "other apps": lambda: other_apps_finding(environ),
        "redirect URI": lambda: _redirect_uri(environ.get("SPOTIFY_REDIRECT_URI", "").strip()),
        "encryption keys": lambda: _keys(environ),
    }
    texts = set[str]()
    for subject, check in checks.items():
        finding = _setting(subject, check)
        if finding.text not in texts:  # several need the same variable
            yield finding
        texts.add(finding.text)


def _setting(subject: str, read: Callable[[], Finding]) -> Finding:
    try:
        return read()
    except ConfigurationError as error:
        return _of_variable(subject, error)


def _of_variable(subject: str, error: ConfigurationError) -> Finding:
    """Return the finding about a variable or its file, which the text of the error names."""
    of_file = str(error).startswith("the file of ")
    return failed(subject, error, remedy=_UNSET.get(str(error), f"correct the {'file, or the ' * of_file}variable"))


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
