"""The apps registered with the simulated Spotify, and the client of a token request, which must be one of them."""

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True)
class Client:
    """The client that a token request names (RFC 6749, section 2.3.1).

    Attributes:
        client_id: empty if the request names none.
        client_secret: None if the request has no Authorization header, as of a public client.
    """

    client_id: str
    client_secret: str | None = field(repr=False)

    @classmethod
    def of_request(cls, form: Mapping[str, str], authorization: str | None) -> Self:
        """Return the client of a form and an Authorization header."""
        if authorization is None:
            return cls(form.get("client_id", ""), None)
        scheme, _, credentials = authorization.partition(" ")
        try:
            decoded = base64.b64decode(credentials, validate=True).decode() if scheme.lower() == "basic" else ""
        except (binascii.Error, UnicodeDecodeError):
            decoded = ""
        client_id, _, client_secret = decoded.partition(":")
        return cls(client_id, client_secret)


class RegisteredApps:
    """The client ids of the registered apps, in order, and their secrets.

    Args:
        client_id: of the first app.
        client_secret: of the first app; None for a public client.
        other_apps: the client ids of further apps with their secrets.

    Raises:
        ValueError: `other_apps` names the first app again.
    """

    def __init__(self, client_id: str, client_secret: str | None, other_apps: Mapping[str, str | None]) -> None:
        if client_id in other_apps:
            raise ValueError("other_apps: expected client ids other than client_id")
        self._first = client_id
        self._secrets = {client_id: client_secret, **other_apps}

    def __iter__(self) -> Iterator[str]:
        """Yield the client ids, that of the first app first."""
        return iter(self._secrets)

    def __contains__(self, client_id: object) -> bool:
        """Return whether an app is registered."""
        return client_id in self._secrets

    def __len__(self) -> int:
        """Return the number of apps."""
        return len(self._secrets)

    def resolve(self, client_id: str | None) -> str:
        """Return the client id of a registered app; None is the first one.

        Raises:
            ValueError: no such app is registered.
        """
        if client_id is None:
            return self._first
        if client_id not in self._secrets:
            raise ValueError(f"client_id: expected that of a registered app, not {client_id!r}")
        return client_id

    def set_secret(self, client_id: str | None, client_secret: str) -> None:
        """Give an app another secret, as the button in Spotify's dashboard does; None is the first one."""
        self._secrets[self.resolve(client_id)] = client_secret

    def fault(self, client: Client) -> str | None:
        """Return why a client is refused (RFC 6749, section 5.2, invalid_client); None if it is a registered app."""
        if client.client_id not in self._secrets:
            return "Invalid client"
        if client.client_secret is None:
            return None
        known = client.client_secret and client.client_secret == self._secrets[client.client_id]
        return None if known else "Invalid client secret"
