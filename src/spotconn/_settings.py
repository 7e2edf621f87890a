"""The settings in the environment, each checked by name and never printed."""

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from spotconn._redirect import checked_redirect_uri
from spotconn.errors import ConfigurationError


class Settings(BaseModel):
    """What `TokenManager.from_env` reads.

    Attributes:
        database_url: DATABASE_URL, or SPOTCONN_DATABASE_URL, which wins; may hold a password.
        client_id: SPOTIFY_CLIENT_ID.
        client_secret: SPOTIFY_CLIENT_SECRET; None for a public client, which uses PKCE alone.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    database_url: str = Field(repr=False)
    client_id: str
    client_secret: str | None = Field(repr=False)

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """The settings of an environment.

        Raises:
            ConfigurationError: a variable is missing or malformed; the text names it and never its value.
        """
        if environ.get("SPOTCONN_ENCRYPTION_KEYS"):
            # To go on would store in plain text what the operator wants encrypted.
            raise ConfigurationError("SPOTCONN_ENCRYPTION_KEYS is set, but this version of spotconn cannot encrypt")
        name = "SPOTCONN_DATABASE_URL" if environ.get("SPOTCONN_DATABASE_URL") else "DATABASE_URL"
        database_url = _required(environ, name)
        if not database_url.startswith(("postgresql://", "postgres://")):
            raise ConfigurationError(f"{name} is malformed: expected postgresql://user:password@host:port/database")
        secret = environ.get("SPOTIFY_CLIENT_SECRET", "").strip()
        return cls(
            database_url=database_url,
            client_id=_identifier("SPOTIFY_CLIENT_ID", _required(environ, "SPOTIFY_CLIENT_ID")),
            client_secret=_identifier("SPOTIFY_CLIENT_SECRET", secret) if secret else None,
        )


def read_redirect_uri(environ: Mapping[str, str]) -> str:
    """SPOTIFY_REDIRECT_URI.

    Raises:
        ConfigurationError: it is missing, or Spotify would refuse it; the text names it and never its value.
    """
    name = "SPOTIFY_REDIRECT_URI"
    return checked_redirect_uri(_required(environ, name), name=name)


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise ConfigurationError(f"{name} is not set")
    return value


def _identifier(name: str, value: str) -> str:
    if not (value.isascii() and value.isalnum()):
        raise ConfigurationError(f"{name} is malformed: expected letters and digits, as Spotify's dashboard shows it")
    return value
