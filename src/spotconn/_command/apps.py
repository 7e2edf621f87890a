"""What the doctor finds about the apps of the environment and those of the stored connections."""

from collections.abc import Collection, Iterator, Mapping

from spotconn._command.finding import Finding
from spotconn._command.probe import UNSEEN, Probe
from spotconn._database.statements import APPS
from spotconn._printable import counted, shown
from spotconn._settings import Settings, read_client, read_other_apps, read_retired_client_ids, read_spotify_url
from spotconn._spotify.client_secret import Secret
from spotconn.errors import ConfigurationError

USUAL_LENGTH = 32
"""Characters of a client id and of a client secret."""

MOST_NAMED = 3
"""Apps that a finding names; of the others it gives the number."""

_VARIABLES = (
    "SPOTIFY_CLIENT_ID",
    "SPOTIFY_CLIENT_SECRET",
    "SPOTIFY_CLIENT_SECRET_FILE",
    "SPOTCONN_OTHER_APPS",
    "SPOTCONN_RETIRED_CLIENT_IDS",
    "SPOTCONN_SPOTIFY_URL",
)


def client_finding(environ: Mapping[str, str]) -> Finding:
    """Return the finding about the app of new connections.

    Raises:
        ConfigurationError: a variable is missing or malformed.
    """
    client_id, secret = read_client(environ)
    variables = "SPOTIFY_CLIENT_ID and SPOTIFY_CLIENT_SECRET"
    unusual = _unusual(environ, client_id, secret)
    return _finding("Spotify app", f"{client_id}, {_kind(secret)}", variables, unusual=unusual)


def other_apps_finding(environ: Mapping[str, str]) -> Finding:
    """Return the finding about further apps and retired ones.

    Raises:
        ConfigurationError: a variable is malformed, or contradicts another.
    """
    others, retired = read_other_apps(environ), read_retired_client_ids(environ)
    if not others and not retired:
        return Finding(state="skip", subject="other apps", text="none")
    # The same checks as at the start of a service; they need a database, and do not open it.
    Settings.read({name: environ.get(name, "") for name in _VARIABLES} | {"DATABASE_URL": "postgresql://"})
    secrets = [secret for _, secret in others]
    public = secrets.count(None)
    text = f"{len(others) - public} of confidential clients, {public} of public clients (PKCE), {len(retired)} retired"
    unusual = any(_unusual(environ, *app) for app in others)
    return _finding("other apps", text, "SPOTCONN_OTHER_APPS", unusual=unusual)


def _finding(subject: str, text: str, variables: str, *, unusual: bool) -> Finding:
    if not unusual:
        return Finding(state="ok", subject=subject, text=text)
    return Finding(
        state="warn",
        subject=subject,
        text=f"{text}; an id or secret that is not {USUAL_LENGTH} letters and digits",
        remedy=f"compare {variables} with Spotify's dashboard",
    )


async def check_apps(probe: Probe, environ: Mapping[str, str]) -> Finding:
    """Compare the apps of the stored connections with those of the environment."""
    try:
        known = {read_client(environ)[0], *(client_id for client_id, _ in read_other_apps(environ))}
        retired = read_retired_client_ids(environ)
    except ConfigurationError as error:
        return Finding(state="skip", subject="apps", text=f"not compared: {error}")
    if not await probe.become_service_role():
        return Finding(state="skip", subject="apps", text=UNSEEN)
    counts = {row["client_id"]: row["count"] for row in await probe.rows(APPS)}
    return apps_finding(counts, known=known, retired=retired)


def apps_finding(counts: Mapping[str | None, int], *, known: Collection[str], retired: Collection[str]) -> Finding:
    """Return the finding about the apps of the stored connections.

    Args:
        counts: connections by client id; of None, those whose app is not known.
        known: client ids of the apps of the environment.
        retired: client ids of those that are given up for good.
    """
    unknown = counts.get(None, 0)
    strange = {app: count for app, count in counts.items() if app is not None and app not in {*known, *retired}}
    texts, remedies = list(_strange_texts(strange)), list[str]()
    if strange:
        remedies.append(
            "add the app to SPOTCONN_OTHER_APPS or, if you have given it up, to SPOTCONN_RETIRED_CLIENT_IDS; "
            "correct SPOTIFY_CLIENT_ID if it is wrong"
        )
    if unknown:
        texts.append(f"{counted(unknown, 'connection names', 'connections name')} no app")
        remedies.append("spotconn assign-app ID, with the app that they were connected with")
    if not texts:
        texts.append(f"{counted(sum(counts.values()), 'connection')}, all of apps known here")
    if given_up := sum(count for app, count in counts.items() if app in retired):
        texts.append(f"{counted(given_up, 'connection')} of retired apps: their users must connect again")
    return Finding(
        state="warn" if remedies else "ok",
        subject="apps",
        text="; ".join(texts),
        remedy="; ".join(remedies) or None,
    )


def _strange_texts(strange: Mapping[str, int]) -> Iterator[str]:
    most = sorted(strange.items(), key=lambda app: app[1], reverse=True)
    for client_id, count in most[:MOST_NAMED]:
        connections = counted(count, "connection belongs", "connections belong")
        yield f"{connections} to the app {shown(client_id)}, which this process does not have"
    if rest := most[MOST_NAMED:]:
        yield f"{sum(count for _, count in rest)} to {counted(len(rest), 'other app')} that it does not have"


def _kind(secret: Secret | None) -> str:
    return "confidential client" if secret else "public client (PKCE)"


def _unusual(environ: Mapping[str, str], *values: Secret | None) -> bool:
    """Return whether one of an id and a secret is no such as Spotify gives; a simulated one takes any."""
    texts = [value() if callable(value) else value for value in values]
    return read_spotify_url(environ) is None and any(len(text) != USUAL_LENGTH for text in texts if text)
