"""Settings read from environment variables. Errors name the variable and never its value."""

import re
from collections.abc import Mapping
from typing import Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from spotconn._database.dsn import check_dsn
from spotconn._spotify.redirect import checked_redirect_uri
from spotconn.errors import ConfigurationError

_KEY = re.compile(r"[A-Za-z0-9_-]{43}=?", re.ASCII)


class Encryption(TypedDict):
    """The settings of encryption, which commands need without those of Spotify."""

    encryption_keys: tuple[str, ...]
    require_encrypted: bool


class Settings(BaseModel):
    """The settings that `TokenManager.from_env` reads.

    Attributes:
        database_url: DATABASE_URL, or SPOTCONN_DATABASE_URL, which wins; may hold a password.
        listen_url: SPOTCONN_LISTEN_URL, past a transaction pooler; None to listen where `database_url` leads.
        client_id: SPOTIFY_CLIENT_ID.
        client_secret: SPOTIFY_CLIENT_SECRET; None for a public client, which uses PKCE alone.
        other_apps: SPOTCONN_OTHER_APPS, each `id:secret` or, for a public client, `id:`, separated by commas.
        retired_client_ids: SPOTCONN_RETIRED_CLIENT_IDS, separated by commas.
        encryption_keys: SPOTCONN_ENCRYPTION_KEYS, separated by commas or spaces, the one that encrypts first.
        require_encrypted: SPOTCONN_REQUIRE_ENCRYPTED, 1 or 0: refuse tokens that are stored as plain text.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    database_url: str = Field(repr=False)
    listen_url: str | None = Field(repr=False)
    client_id: str
    client_secret: str | None = Field(repr=False)
    other_apps: tuple[tuple[str, str | None], ...] = Field(default=(), repr=False)
    retired_client_ids: tuple[str, ...] = ()
    encryption_keys: tuple[str, ...] = Field(default=(), repr=False)
    require_encrypted: bool = False

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings of an environment.

        Raises:
            ConfigurationError: a variable is missing or malformed, or contradicts another; the text names it and
                never its value.
        """
        client_id, client_secret = read_client(environ)
        other_apps, retired = read_other_apps(environ), read_retired_client_ids(environ)
        known = [client_id, *(other for other, _ in other_apps)]
        if len(set(known)) < len(known):
            raise ConfigurationError("SPOTCONN_OTHER_APPS names an app twice, or the one of SPOTIFY_CLIENT_ID")
        if set(known) & set(retired):
            raise ConfigurationError("SPOTCONN_RETIRED_CLIENT_IDS names an app that is in use here")
        return cls(
            database_url=read_database_url(environ),
            listen_url=_dsn(environ, "SPOTCONN_LISTEN_URL") if environ.get("SPOTCONN_LISTEN_URL") else None,
            client_id=client_id,
            client_secret=client_secret,
            other_apps=other_apps,
            retired_client_ids=retired,
            **read_encryption(environ),
        )


def read_database_url(environ: Mapping[str, str]) -> str:
    """Return SPOTCONN_DATABASE_URL, else DATABASE_URL.

    Raises:
        ConfigurationError: it is missing or malformed; the text names it and never its value.
    """
    name = "SPOTCONN_DATABASE_URL" if environ.get("SPOTCONN_DATABASE_URL") else "DATABASE_URL"
    return _dsn(environ, name)


def read_client(environ: Mapping[str, str]) -> tuple[str, str | None]:
    """Return SPOTIFY_CLIENT_ID and SPOTIFY_CLIENT_SECRET; no secret means a public client.

    Raises:
        ConfigurationError: one is missing or malformed; the text names it and never its value.
    """
    secret = environ.get("SPOTIFY_CLIENT_SECRET", "").strip()
    return (
        _identifier("SPOTIFY_CLIENT_ID", _required(environ, "SPOTIFY_CLIENT_ID")),
        _identifier("SPOTIFY_CLIENT_SECRET", secret) if secret else None,
    )


def read_other_apps(environ: Mapping[str, str]) -> tuple[tuple[str, str | None], ...]:
    """Return client id and secret of each app of SPOTCONN_OTHER_APPS; no secret means a public client.

    Raises:
        ConfigurationError: it is malformed; the text names it and never its value.
    """
    name = "SPOTCONN_OTHER_APPS"
    apps: list[tuple[str, str | None]] = []
    for entry in _entries(environ, name):
        # The colon is required: what follows a comma in place of it is a secret.
        found = re.fullmatch(r"([A-Za-z0-9]+):([A-Za-z0-9]*)", entry, re.ASCII)
        if found is None:
            raise ConfigurationError(
                f"{name} is malformed: expected id:secret as Spotify's dashboard shows them, separated by commas; "
                "id: for a public client"
            )
        apps.append((found[1], found[2] or None))
    return tuple(apps)


def read_retired_client_ids(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the client ids of SPOTCONN_RETIRED_CLIENT_IDS.

    Raises:
        ConfigurationError: it is malformed; the text names it and never its value.
    """
    name = "SPOTCONN_RETIRED_CLIENT_IDS"
    return tuple(_identifier(name, client_id) for client_id in _entries(environ, name))


def read_encryption(environ: Mapping[str, str]) -> Encryption:
    """Return the ring of encryption keys and whether encryption is required.

    Raises:
        ConfigurationError: a variable is malformed; the text names it and never its value.
    """
    keys = tuple(re.split(r"[\s,]+", environ.get("SPOTCONN_ENCRYPTION_KEYS", "").strip()))
    if keys == ("",):
        keys = ()
    if not all(_KEY.fullmatch(key) for key in keys):
        raise ConfigurationError(
            "SPOTCONN_ENCRYPTION_KEYS is malformed: expected keys as `spotconn keygen` prints them, "
            "separated by commas, the newest first"
        )
    required = environ.get("SPOTCONN_REQUIRE_ENCRYPTED", "").strip() or "0"
    if required not in {"0", "1"}:
        raise ConfigurationError("SPOTCONN_REQUIRE_ENCRYPTED is malformed: expected 1 or 0")
    if required == "1" and not keys:
        # Without keys the tokens would be stored in plain text.
        raise ConfigurationError("SPOTCONN_REQUIRE_ENCRYPTED is 1, but SPOTCONN_ENCRYPTION_KEYS is not set")
    return {"encryption_keys": keys, "require_encrypted": required == "1"}


def read_redirect_uri(environ: Mapping[str, str]) -> str:
    """Return SPOTIFY_REDIRECT_URI.

    Raises:
        ConfigurationError: it is missing, or Spotify would refuse it; the text names it and never its value.
    """
    name = "SPOTIFY_REDIRECT_URI"
    return checked_redirect_uri(_required(environ, name), name=name)


def _dsn(environ: Mapping[str, str], name: str) -> str:
    dsn = _required(environ, name)
    check_dsn(dsn, name=name)
    return dsn


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise ConfigurationError(f"{name} is not set")
    return value


def _entries(environ: Mapping[str, str], name: str) -> list[str]:
    """Return what a variable lists, separated by commas."""
    return [entry for one in environ.get(name, "").split(",") if (entry := one.strip())]


def _identifier(name: str, value: str) -> str:
    if not (value.isascii() and value.isalnum()):
        raise ConfigurationError(f"{name} is malformed: expected letters and digits, as Spotify's dashboard shows it")
    return value
