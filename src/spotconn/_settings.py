"""Settings read from environment variables. Errors name the variable and never its value."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from spotconn._database.acquire import TIMEOUT
from spotconn._database.dsn import check_dsn
from spotconn._spotify.authorization import base_url
from spotconn._spotify.client_secret import Secret
from spotconn._spotify.redirect import checked_redirect_uri
from spotconn._spotify.secret_file import SecretFile
from spotconn.errors import ConfigurationError

MIN_SIZE, MAX_SIZE = 1, 10
"""Connections of a pool at least and at most, where nothing else is set."""

_KEY = re.compile(r"[A-Za-z0-9_-]{43}=?", re.ASCII)
_LOCALHOST = re.compile(r"http://localhost(?=[:/]|$)", re.IGNORECASE)


class PoolOptions(TypedDict):
    """The settings of the pool, as arguments of `ConnectionStore.open`."""

    timeout: float
    min_size: int
    max_size: int


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
        client_secret: SPOTIFY_CLIENT_SECRET, or the file of SPOTIFY_CLIENT_SECRET_FILE; None for a public client,
            which uses PKCE alone.
        other_apps: SPOTCONN_OTHER_APPS, each `id:secret`, `id:/path/of/its/file` or, for a public client, `id:`,
            separated by commas.
        retired_client_ids: SPOTCONN_RETIRED_CLIENT_IDS, separated by commas.
        encryption_keys: SPOTCONN_ENCRYPTION_KEYS, separated by commas or spaces, the one that encrypts first.
        require_encrypted: SPOTCONN_REQUIRE_ENCRYPTED, 1 or 0: refuse tokens that are stored as plain text.
        timeout: SPOTCONN_TIMEOUT, in seconds.
        min_size: SPOTCONN_MIN_SIZE, connections of the pool at least.
        max_size: SPOTCONN_MAX_SIZE, connections of the pool at most.
        spotify_url: SPOTCONN_SPOTIFY_URL, of a simulated Spotify on this host; None for Spotify itself.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    database_url: str = Field(repr=False)
    listen_url: str | None = Field(repr=False)
    client_id: str
    client_secret: Secret | None = Field(repr=False)
    other_apps: tuple[tuple[str, Secret | None], ...] = Field(default=(), repr=False)
    retired_client_ids: tuple[str, ...] = ()
    encryption_keys: tuple[str, ...] = Field(default=(), repr=False)
    require_encrypted: bool = False
    timeout: float = TIMEOUT
    min_size: int = MIN_SIZE
    max_size: int = MAX_SIZE
    spotify_url: str | None = None

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
            spotify_url=read_spotify_url(environ),
            **read_pool_options(environ),
            **read_encryption(environ),
        )


def variables(environ: Mapping[str, str | None] | None) -> Mapping[str, str]:
    """Return the variables of a mapping, or those of this process; None in it is one that is not set.

    Raises:
        ValueError: a value is something else than text, such as pydantic's SecretStr.
    """
    if environ is None:
        return os.environ
    found = {name: value for name, value in environ.items() if value is not None}
    for name, value in found.items():
        if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]  callers err
            raise ValueError(f"environ: expected a str for {name}")  # noqa: TRY004  bad input is a ValueError here
    return found


def read_database_url(environ: Mapping[str, str]) -> str:
    """Return SPOTCONN_DATABASE_URL, else DATABASE_URL.

    Raises:
        ConfigurationError: it is missing or malformed; the text names it and never its value.
    """
    name = "SPOTCONN_DATABASE_URL" if environ.get("SPOTCONN_DATABASE_URL") else "DATABASE_URL"
    return _dsn(environ, name)


def read_timeout(environ: Mapping[str, str]) -> float:
    """Return SPOTCONN_TIMEOUT, the seconds to wait for the database; ConfigurationError if it is malformed."""
    text = environ.get("SPOTCONN_TIMEOUT", "").strip() or str(TIMEOUT)
    if not (re.fullmatch(r"\d{1,3}(\.\d{1,3})?", text, re.ASCII) and float(text)):
        raise ConfigurationError("SPOTCONN_TIMEOUT is malformed: expected seconds, more than 0 and less than 1000")
    return float(text)


def read_pool_options(environ: Mapping[str, str]) -> PoolOptions:
    """Return SPOTCONN_TIMEOUT, SPOTCONN_MIN_SIZE and SPOTCONN_MAX_SIZE.

    Raises:
        ConfigurationError: one is malformed; the text names it and never its value.
    """
    return {
        "timeout": read_timeout(environ),
        "min_size": _connections(environ, "SPOTCONN_MIN_SIZE", MIN_SIZE, least=0),
        "max_size": _connections(environ, "SPOTCONN_MAX_SIZE", MAX_SIZE, least=1),
    }


def read_client(environ: Mapping[str, str]) -> tuple[str, Secret | None]:
    """Return SPOTIFY_CLIENT_ID and SPOTIFY_CLIENT_SECRET, or the SPOTIFY_CLIENT_SECRET_FILE to read it from.

    Without either it is a public client.

    Raises:
        ConfigurationError: one is missing or malformed, or both secrets are set; the text names it and never its value.
    """
    client_id = _identifier(environ, "SPOTIFY_CLIENT_ID", _required(environ, "SPOTIFY_CLIENT_ID"))
    secret = environ.get("SPOTIFY_CLIENT_SECRET", "").strip()
    file = environ.get("SPOTIFY_CLIENT_SECRET_FILE", "").strip()
    if secret and file:
        raise ConfigurationError("SPOTIFY_CLIENT_SECRET and SPOTIFY_CLIENT_SECRET_FILE are both set: unset one of them")
    if file:
        return client_id, _secret_file(environ, "SPOTIFY_CLIENT_SECRET_FILE", file)
    return client_id, _identifier(environ, "SPOTIFY_CLIENT_SECRET", secret) if secret else None


def read_other_apps(environ: Mapping[str, str]) -> tuple[tuple[str, Secret | None], ...]:
    """Return client id and secret of each app of SPOTCONN_OTHER_APPS; no secret means a public client.

    Raises:
        ConfigurationError: it is malformed, or a file cannot be read; the text names it and never its value.
    """
    return tuple(_other_app(environ, entry) for entry in _entries(environ, "SPOTCONN_OTHER_APPS"))


def read_retired_client_ids(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the client ids of SPOTCONN_RETIRED_CLIENT_IDS.

    Raises:
        ConfigurationError: it is malformed; the text names it and never its value.
    """
    name = "SPOTCONN_RETIRED_CLIENT_IDS"
    return tuple(_identifier(environ, name, client_id) for client_id in _entries(environ, name))


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


def read_spotify_url(environ: Mapping[str, str]) -> str | None:
    """Return SPOTCONN_SPOTIFY_URL, the base URL of a simulated Spotify; None for Spotify itself.

    The name localhost becomes 127.0.0.1, so that it leads to this host whatever it resolves to.

    Raises:
        ConfigurationError: it is malformed, or leads to another host: client secrets and tokens go there in clear text.
    """
    name = "SPOTCONN_SPOTIFY_URL"
    url = _LOCALHOST.sub("http://127.0.0.1", environ.get(name, "").strip())
    if not url:
        return None
    with suppress(ConfigurationError):
        if not url.lower().startswith("https:"):
            return base_url(url, name=name)
    raise ConfigurationError(
        f"{name} must lead to a simulated Spotify on this host: expected http with a loopback literal or localhost, "
        "such as http://127.0.0.1:8080"
    )


def _connections(environ: Mapping[str, str], name: str, default: int, *, least: int) -> int:
    text = environ.get(name, "").strip() or str(default)
    if not (re.fullmatch(r"\d{1,4}", text, re.ASCII) and int(text) >= least):
        raise ConfigurationError(f"{name} is malformed: expected a number of connections from {least} to 9999")
    return int(text)


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


def _other_app(environ: Mapping[str, str], entry: str) -> tuple[str, Secret | None]:
    # The colon is required: what follows a comma in place of it is a secret.
    client_id, colon, secret = entry.partition(":")
    is_file = Path(secret).is_absolute()
    is_secret = not secret or is_file or _is_identifier(environ, secret)
    if not (colon and is_secret and _is_identifier(environ, client_id)):
        raise ConfigurationError(
            "SPOTCONN_OTHER_APPS is malformed: expected id:secret as Spotify's dashboard shows them, separated by "
            "commas; id: for a public client, id:/path for a file with the secret"
        )
    return client_id, _secret_file(environ, "SPOTCONN_OTHER_APPS", secret) if is_file else secret or None


def _secret_file(environ: Mapping[str, str], name: str, path: str) -> SecretFile:
    """Return what reads a secret from a file, once the file is known to hold one."""
    file = SecretFile(path, name)
    _identifier(environ, f"the file of {name}", file())
    return file


def _identifier(environ: Mapping[str, str], name: str, value: str) -> str:
    if not _is_identifier(environ, value):
        raise ConfigurationError(f"{name} is malformed: expected letters and digits, as Spotify's dashboard shows it")
    return value


def _is_identifier(environ: Mapping[str, str], value: str) -> bool:
    """Return whether this can be the id or the secret of an app; one of a simulated Spotify may have hyphens."""
    letters = value.replace("-", "") if read_spotify_url(environ) else value
    return letters.isascii() and letters.isalnum()
