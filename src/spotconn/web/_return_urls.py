"""Where a browser may be sent afterwards: paths, and URLs of the front end. No I/O."""

from urllib.parse import unquote, urlsplit

LONGEST = 900
"""Characters of a return URL; a flow carries 1,000 characters of data in all."""

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_DEFAULT_PORT = {"https": 443, "http": 80}


def checked_origin(value: str) -> str:
    """Return the origin of the front end as browsers write it in `Origin`.

    Raises:
        ValueError: it is no origin of https, or of http on the loopback interface.
    """
    try:
        parts = urlsplit(value)
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        parts, port, host = urlsplit(""), None, ""
    is_clean = _is_plain(value) and not {"@", "?", "#"} & set(value)
    is_secure = parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)
    if not (is_clean and is_secure and host and parts.path in {"", "/"}):
        raise ValueError(
            "front_end: expected an origin such as https://app.example.com, or http on 127.0.0.1 or localhost"
        )
    netloc = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{netloc}" + (f":{port}" if port not in {None, _DEFAULT_PORT[parts.scheme]} else "")


def checked_return_url(value: str, front_end: str | None) -> str | None:
    """Return where to send the browser: a path of this service or of the front end; None where it may not go there.

    A path is one of the front end where there is one. It holds neither a backslash, a blank, a control character nor a
    character that is not ASCII, and no empty segment, also in percent-encoding: browsers and proxies read some of these
    as the beginning of a host.

    Args:
        value: a path, or a URL of the front end; both with a query and a fragment, if any.
        front_end: the origin of the front end, from `checked_origin`.
    """
    origin = front_end or ""
    rest = "/" if value == front_end else value.removeprefix(origin)
    if is_too_long(value, front_end) or not _is_plain(rest):
        return None
    path = _decoded(rest.partition("#")[0].partition("?")[0])
    if not rest.startswith("/") or "//" in path or "\\" in path or not path.isprintable():
        return None
    return f"{origin}{rest}"


def is_too_long(value: str, front_end: str | None) -> bool:
    """Return whether a return URL has more than `LONGEST` characters, with the origin of the front end."""
    origin = front_end or ""
    return len(origin + value.removeprefix(origin)) > LONGEST


def with_outcome(url: str, outcome: str) -> str:
    """Return a checked return URL with `spotify=OUTCOME` in its query, in place of an earlier one."""
    rest, hash_sign, fragment = url.partition("#")
    base, _, query = rest.partition("?")
    others = [part for part in query.split("&") if part and unquote(part.partition("=")[0]) != "spotify"]
    return f"{base}?{'&'.join([*others, f'spotify={outcome}'])}{hash_sign}{fragment}"


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and not {" ", "\\"} & set(text)


def _decoded(path: str) -> str:
    # As often as it can be: each proxy on the way may do so once more.
    while (decoded := unquote(path)) != path:
        path = decoded
    return path
