"""The cookie that binds an authorization to the browser that began it: its name, and the headers that carry it.

RFC 6265. On https its name has the prefix `__Host-`: browsers then take it only from the host itself, over https and
for all paths, so that no other subdomain can set it. The name carries a part of the hash of the state, so that several
tabs do not overwrite one another.
"""

import hashlib
import re

LIFETIME = 600
"""Seconds that a browser keeps the cookie: as long as an authorization may take."""
MOST = 5
"""Cookies of authorizations that a browser should have at once."""

_OURS = re.compile(r"(?:__Host-)?spotconn-[0-9a-f]{8}", re.ASCII)


def cookie_name(state: str, *, secure: bool) -> str:
    """Return the name of the cookie that belongs to a state.

    Args:
        state: of the authorization.
        secure: whether the redirect URI is https.
    """
    digest = hashlib.sha256(state.encode("utf-8", "backslashreplace")).hexdigest()
    return f"{'__Host-' if secure else ''}spotconn-{digest[:8]}"


def set_cookie(name: str, value: str) -> str:
    """Return the text of a Set-Cookie header that gives a browser the cookie; with an empty value, takes it away."""
    lifetime = LIFETIME if value else 0
    secure = " Secure;" if name.startswith("__Host-") else ""
    return f"{name}={value}; Path=/; Max-Age={lifetime}; HttpOnly;{secure} SameSite=Lax"


def read_cookie(header: str | None, name: str) -> str | None:
    """Return the value of a cookie in a Cookie header; None if it is not there, or there with two values."""
    values = {value for found, value in _cookies(header) if found == name}
    return values.pop() if len(values) == 1 else None


def surplus_cookies(header: str | None, *, most: int = MOST) -> list[str]:
    """Return the names of the oldest of our cookies in a Cookie header, where it has more than `most`.

    Browsers send the oldest first (RFC 6265, section 5.4).
    """
    names = list(dict.fromkeys(name for name, _ in _cookies(header) if _OURS.fullmatch(name)))
    return names[: max(len(names) - most, 0)]


def _cookies(header: object) -> list[tuple[str, str]]:
    if not isinstance(header, str | None):
        raise ValueError("cookie: expected the Cookie header of the request, as a str")  # noqa: TRY004  bad input
    pairs = [part.partition("=") for part in (header or "").split(";")]
    return [(name.strip(" \t"), value.strip(" \t")) for name, _, value in pairs]
