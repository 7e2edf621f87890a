"""TLS and proxies as the environment of the host sets them. Errors name the variable and never its value.

The HTTP library reads the same variables. It fails on some that other clients take, and its errors do not name the
variable. Which certificates are trusted does not depend on it: httpx2 by itself would take those of the system.
"""

import importlib.util
import os
import re
import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from spotconn._spotify.http_library import library
from spotconn.errors import ConfigurationError

_SOCKS = {"socks5", "socks5h"}
_SCHEMES = {"http", "https", *_SOCKS}
_HIGHEST_PORT = 65535
# The names by which OpenSSL finds certificates in a folder (`openssl rehash`).
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.[0-9]+")


def tls_context() -> ssl.SSLContext:
    """Return a context that verifies servers by SSL_CERT_FILE, SSL_CERT_DIR or the certificates of certifi.

    Raises:
        ConfigurationError: one of these variables, or SSLKEYLOGFILE, names what cannot be used.
    """
    file, folders = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if not file and folders:
        _check_folders(folders)
    try:
        return _context(file, folders)
    except OSError as error:  # ssl.SSLError is one
        failure = _tls_failure(error)
    raise failure


def _context(file: str | None, folders: str | None) -> ssl.SSLContext:
    import certifi  # noqa: PLC0415  the import of the library does not wait for it

    if not file and folders:
        return ssl.create_default_context(capath=folders)
    return ssl.create_default_context(cafile=file or certifi.where())


def _check_folders(folders: str) -> None:
    """Check what OpenSSL does not: it ignores a folder without certificates, and then verifies no server."""
    for folder in map(Path, folders.split(os.pathsep)):
        try:
            if any(_HASHED_NAME.fullmatch(file.name) for file in folder.iterdir()):
                return
        except OSError:
            continue
    raise ConfigurationError(
        "SSL_CERT_DIR names no folder with certificates under the names that OpenSSL looks for: run `openssl rehash` "
        "on it, or unset the variable"
    )


def _tls_failure(error: OSError) -> ConfigurationError:
    kind = type(error).__name__
    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates and not _is_loadable(certificates):
        return ConfigurationError(
            f"SSL_CERT_FILE does not name a file of certificates in PEM format that can be read ({kind}): correct or "
            "unset it"
        )
    if os.environ.get("SSLKEYLOGFILE"):
        return ConfigurationError(f"SSLKEYLOGFILE names a file that cannot be written ({kind}): correct or unset it")
    return ConfigurationError(
        f"the root certificates of the package certifi cannot be read ({kind}): name others in SSL_CERT_FILE"
    )


def _is_loadable(file: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
    except OSError:
        return False
    return True


class ProxySetting(NamedTuple):
    """A proxy of the environment.

    Attributes:
        variable: that names it, or where else it is set.
        value: its URL, which may hold a password.
    """

    variable: str
    value: str


def proxy_setting(url: str) -> ProxySetting | None:
    """Return the proxy that the environment sets for a URL, or None: HTTPS_PROXY, ALL_PROXY and NO_PROXY.

    They are read as urllib does. On Windows and macOS the settings of the system count where there are no variables.
    """
    settings, parts = getproxies(), urlsplit(url)
    scheme = next((scheme for scheme in (parts.scheme, "all") if settings.get(scheme)), None)
    if scheme is None or proxy_bypass(f"{parts.hostname}:{parts.port or 443}"):
        return None
    return ProxySetting(_variable(f"{scheme}_proxy"), settings[scheme])


def proxy_of(setting: ProxySetting) -> library.Proxy:
    """Return the proxy of a setting.

    Raises:
        ConfigurationError: it is malformed, or its kind is not supported.
    """
    url = _parsed(setting.value)
    if url is None:
        raise ConfigurationError(
            f"{setting.variable} is malformed: expected http://user:password@host:port, with every character of user "
            "and password that is neither letter nor digit percent-encoded"
        )
    if url.scheme not in _SCHEMES:
        raise ConfigurationError(
            f"{setting.variable} names a proxy of a kind that httpx does not know: expected http, https, socks5 or "
            "socks5h before the ://"
        )
    if url.scheme in _SOCKS and importlib.util.find_spec("socksio") is None:
        raise ConfigurationError(
            f'{setting.variable} names a SOCKS proxy, which needs a package: pip install "httpx[socks]". Or list '
            ".spotify.com in NO_PROXY to do without the proxy"
        )
    return library.Proxy(url)


def _parsed(value: str) -> library.URL | None:
    """Return the URL of a proxy; None also if it ends early, as with a `#`, `?` or `/` in the password."""
    try:
        url = library.URL(value if "://" in value else f"http://{value}")
    except library.InvalidURL:
        return None
    whole = url.raw_path in {b"", b"/"} and not url.fragment
    return url if whole and url.host and (url.port or 0) <= _HIGHEST_PORT else None


def _variable(name: str) -> str:
    """Return how the variable is spelled; the lower-case one goes first, as in urllib."""
    spelled = sorted((other for other in os.environ if other.lower() == name and os.environ[other]), reverse=True)
    return spelled[0] if spelled else f"the system's setting for {name}"
