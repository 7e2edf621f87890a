"""The doctor about apps: those of the settings, and those that the stored connections belong to."""

from uuid import UUID

import pytest

from spotconn import ConnectionStore, Profile
from spotconn._command.apps import apps_finding
from spotconn._command.doctor import examine
from spotconn._command.finding import Finding
from support.connections import grant
from support.database import Database
from support.doctor import HEALTHY, look

OWN = HEALTHY["SPOTIFY_CLIENT_ID"]
OTHER, SECRET = "a" * 32, "marked" + "b" * 26
ALICE = Profile(spotify_user_id="alice")


async def of_settings(**changes: str) -> dict[str, Finding]:
    """The findings with a database that cannot be reached."""
    environ = HEALTHY | {"DATABASE_URL": "postgresql://a@127.0.0.1:1/x"} | changes
    return {one.subject: one async for one in examine(environ)}


@pytest.mark.parametrize(
    ("other_apps", "retired", "state", "text"),
    [
        ("", "", "skip", "none"),
        (f"{OTHER}:{SECRET}", "", "ok", "1 of confidential clients, 0 of public clients (PKCE), 0 retired"),
        (f"{OTHER}:, {'c' * 32}:", "old", "ok", "0 of confidential clients, 2 of public clients (PKCE), 1 retired"),
        ("short:marked", "", "warn", "an id or secret that is not 32 letters and digits"),
        (f"{OTHER}:marked secret", "", "fail", "SPOTCONN_OTHER_APPS is malformed"),
        (f"{OWN}:{SECRET}", "", "fail", "SPOTCONN_OTHER_APPS names an app twice, or the one of SPOTIFY_CLIENT_ID"),
        (f"{OTHER}:{SECRET}", "marked!", "fail", "SPOTCONN_RETIRED_CLIENT_IDS is malformed"),
        (f"{OTHER}:{SECRET}", OTHER, "fail", "SPOTCONN_RETIRED_CLIENT_IDS names an app that is in use here"),
    ],
)
async def test_the_settings_of_other_apps(other_apps: str, retired: str, state: str, text: str) -> None:
    """Their number and kind; what is wrong names the variable, and no secret is shown."""
    found = await of_settings(SPOTCONN_OTHER_APPS=other_apps, SPOTCONN_RETIRED_CLIENT_IDS=retired)
    assert found["other apps"].state == state
    assert text in found["other apps"].text
    assert "marked" not in repr(found)


async def test_the_client_id_is_shown_and_not_the_secret() -> None:
    """Also where one of them is of an unusual length."""
    for secret in (SECRET, "marked", ""):
        found = await of_settings(SPOTIFY_CLIENT_SECRET=secret)
        assert found["Spotify app"].text.startswith(f"{OWN}, ")
        assert "marked" not in repr(found)


async def test_the_apps_of_connections(database: Database, store: ConnectionStore, users: list[UUID]) -> None:
    """One that is missing here is named until it is added or retired; those of no app are counted."""
    for user, app in zip(users, (OWN, OTHER, None), strict=True):
        await store.save(user, grant("a"), ALICE, client_id=app)
    found = (await look(database.admin_dsn))["apps"]
    assert found.state == "warn"
    assert found.text == (
        f"1 connection belongs to the app {OTHER}, which this process does not have; 1 connection names no app"
    )
    assert "SPOTCONN_OTHER_APPS" in str(found.remedy)
    assert "SPOTCONN_RETIRED_CLIENT_IDS" in str(found.remedy)
    assert "spotconn assign-app ID" in str(found.remedy)
    found = (await look(database.admin_dsn, SPOTCONN_OTHER_APPS=f"{OTHER}:{SECRET}"))["apps"]
    assert (found.state, found.text) == ("warn", "1 connection names no app")
    assert "SPOTCONN" not in str(found.remedy)
    await store.delete(users[2])
    found = (await look(database.admin_dsn, SPOTCONN_RETIRED_CLIENT_IDS=OTHER))["apps"]
    assert (found.state, found.remedy) == ("ok", None)
    assert found.text == (
        "2 connections, all of apps known here; 1 connection of retired apps: their users must connect again"
    )


@pytest.mark.parametrize(
    "changes", [{"SPOTIFY_CLIENT_ID": ""}, {"SPOTCONN_OTHER_APPS": "a:b:marked"}, {"SPOTCONN_RETIRED_CLIENT_IDS": "!"}]
)
async def test_apps_are_not_compared_with_wrong_settings(database: Database, changes: dict[str, str]) -> None:
    """The line of the variable fails; this one says that it was left out."""
    found = (await look(database.admin_dsn, **changes))["apps"]
    assert found.state == "skip"
    assert found.text.startswith(f"not compared: {next(iter(changes))}")


def test_of_many_unknown_apps_the_largest_are_named() -> None:
    """Three of them, and the number of the others."""
    counts: dict[str | None, int] = {f"app-{number}": number for number in range(1, 6)}
    text = apps_finding(counts, known=[OWN], retired=[]).text
    named = [
        f"{number} connections belong to the app app-{number}, which this process does not have" for number in (5, 4, 3)
    ]
    assert text == "; ".join([*named, "3 to 2 other apps that it does not have"])
