"""The doctor's findings from Spotify itself: credentials, the Web API and the clock. No user takes part."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TypeAlias

from spotconn._command.clocks import spotify_clock_finding
from spotconn._command.finding import Finding, failed
from spotconn._settings import read_client, read_other_apps, read_spotify_url
from spotconn._spotify.app_check import AppAnswers, ask_about_app
from spotconn._spotify.client_secret import Secret
from spotconn.errors import ConfigurationError, SpotifyUnavailable

SUBJECT, CREDENTIALS, WEB_API = "Spotify", "credentials", "Web API"

Errors: TypeAlias = Mapping[str, ConfigurationError | SpotifyUnavailable | None]
"""What Spotify has refused, by client id."""


def not_asked(environ: Mapping[str, str]) -> Finding:
    """Return the finding that says what was not asked for want of `--online`."""
    which = f"{simulated}; " if (simulated := _simulated(environ)) else ""
    text = f"{which}not asked whether it accepts and serves each app, nor for the time; spotconn doctor --online asks"
    return Finding(state="skip", subject=SUBJECT, text=text)


async def spotify_findings(
    environ: Mapping[str, str],
    *,
    timeout: float = 10,  # noqa: ASYNC109  the deadline is over all attempts
) -> list[Finding]:
    """Ask Spotify about each app of the environment, all at once, and return what is found.

    Args:
        environ: as `os.environ`.
        timeout: seconds for each question.
    """
    try:
        apps: dict[str, Secret | None] = dict([read_client(environ), *read_other_apps(environ)])
        spotify_url = read_spotify_url(environ)
    except ConfigurationError as error:  # the line of the variable fails
        return [Finding(state="skip", subject=SUBJECT, text=f"not asked: {error}")]
    try:
        answers = await _ask(apps, spotify_url, timeout)
    except ConfigurationError as error:  # of TLS or a proxy, which have no line
        return [failed(SUBJECT, error)]
    if (simulated := _simulated(environ)) and answers and all(map(_is_silent, answers.values())):
        remedy = "start it: spotconn simulate; for Spotify itself unset SPOTCONN_SPOTIFY_URL"
        return [Finding(state="fail", subject=SUBJECT, text=f"no answer of {simulated}", remedy=remedy)]
    web_api = {client_id: one.web_api for client_id, one in answers.items() if one.credentials is None}
    clocks = [spotify_clock_finding(one.clock) for one in answers.values() if one.clock]
    return [
        *_of_the_url(environ),
        *_of_credentials({client_id: one.credentials for client_id, one in answers.items()}),
        *_of_public_clients(apps),
        *_of_the_web_api(web_api),
        *clocks[:1],
    ]


async def _ask(apps: Mapping[str, Secret | None], spotify_url: str | None, seconds: float) -> dict[str, AppAnswers]:
    """Return the answers to each confidential client."""
    secrets = {
        client_id: secret() if callable(secret) else secret for client_id, secret in apps.items() if secret is not None
    }
    questions = (ask_about_app(*app, spotify_url=spotify_url, timeout=seconds) for app in secrets.items())
    return dict(zip(secrets, await asyncio.gather(*questions), strict=True))


def _is_silent(answers: AppAnswers) -> bool:
    return isinstance(answers.credentials, SpotifyUnavailable) and not answers.credentials.answered


def _of_the_url(environ: Mapping[str, str]) -> Iterator[Finding]:
    if simulated := _simulated(environ):
        yield Finding(state="ok", subject=SUBJECT, text=simulated)


def _of_credentials(errors: Errors) -> Iterator[Finding]:
    if accepted := [client_id for client_id, error in errors.items() if error is None]:
        yield Finding(state="ok", subject=CREDENTIALS, text=f"Spotify accepts id and secret of {', '.join(accepted)}")
    yield from _of_errors(CREDENTIALS, errors)


def _of_public_clients(apps: Mapping[str, Secret | None]) -> Iterator[Finding]:
    if public := [client_id for client_id, secret in apps.items() if secret is None]:
        text = f"cannot be asked for a public client, which has no secret: {', '.join(public)}"
        yield Finding(state="skip", subject=CREDENTIALS, text=text)


def _of_the_web_api(errors: Errors) -> Iterator[Finding]:
    if served := [client_id for client_id, error in errors.items() if error is None]:
        text = f"serves {', '.join(served)}; whether for each user, only a token of that user tells"
        yield Finding(state="ok", subject=WEB_API, text=text)
    yield from _of_errors(WEB_API, errors, "see the app in Spotify's dashboard: nothing that a user does helps")


def _of_errors(subject: str, errors: Errors, remedy: str | None = None) -> Iterator[Finding]:
    """Yield one finding for each text: what is wrong on the way there is so for every app."""
    apps = defaultdict[str, list[str]](list)
    for client_id, error in errors.items():
        if error is not None:
            apps[str(error)].append(client_id)
    for text, (first, *others) in apps.items():
        error = errors[first]
        passes = isinstance(error, SpotifyUnavailable) and error.answered
        yield Finding(
            state="warn" if passes else "fail",
            subject=subject,
            text=text if first in text else f"{text} ({', '.join([first, *others])})",
            remedy=remedy if isinstance(error, ConfigurationError) else None,
        )


def _simulated(environ: Mapping[str, str]) -> str:
    with suppress(ConfigurationError):  # the line of the app has it
        if url := read_spotify_url(environ):
            return f"a simulated one at {url}, of SPOTCONN_SPOTIFY_URL"
    return ""
