"""Errors of asyncpg that come from the way to Postgres, or from what the caller does on it."""

import errno
import socket
import ssl

import asyncpg

from spotconn.errors import ConfigurationError, DatabaseUnavailable, SpotconnError

DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""All that asyncpg raises for what the network, the server or an option does."""
MALFORMED = "the DSN, an option of the pool or a variable PG... is malformed; expected postgresql://user@host/name"
UNKNOWN_HOST = "the host name of the database URL is not known to the name service: check it"
HOST_UNKNOWN = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
"""Answers of a name service: there is no such name. Others say that it does not answer now."""
_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL}
_WRONG_NAME = {62, 64}
"""OpenSSL's codes of a certificate for another host name or address."""


def is_unknown_host(error: BaseException) -> bool:
    """Return whether a name service has answered that it does not know the host."""
    return isinstance(error, socket.gaierror) and error.errno in HOST_UNKNOWN


def is_without_listener(error: BaseException) -> bool:
    """Return whether nothing listens at an address, or no route leads there."""
    return isinstance(error, ConnectionRefusedError) or (isinstance(error, OSError) and error.errno in _NO_ROUTE)


def hook_failure(error: Exception) -> DatabaseUnavailable:
    """Return the error for one that a password callable or a hook of the caller's has raised."""
    return DatabaseUnavailable(
        f"the password callable or a hook of the pool has raised {type(error).__name__}, so there is no connection; "
        "try again later, and see to it if it goes on"
    )


def unreachable(error: Exception) -> SpotconnError:
    """Return the error of the library for one of the connection: of its settings, or DatabaseUnavailable."""
    setting = _setting_problem(error)
    if setting:
        return ConfigurationError(setting)
    if isinstance(error, TimeoutError):
        return DatabaseUnavailable("the database did not answer in time; try again later")
    return DatabaseUnavailable(f"the database cannot be reached ({_fault(error)}); try again later")


def _setting_problem(error: Exception) -> str | None:
    """Return what is wrong with a setting, None if none is."""
    if isinstance(error, asyncpg.ClientConfigurationError):
        return MALFORMED
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate(error)
    if type(error) is ConnectionError and str(error).endswith("rejected SSL upgrade"):
        return (
            "the database server refuses TLS, and sslmode of the database URL demands it: turn TLS on at the server "
            "or, on a network that you trust, write sslmode=disable"
        )
    return None


def _fault(error: Exception) -> str:
    """Return what is wrong on the way."""
    name = type(error).__name__
    if isinstance(error, socket.gaierror):
        return f"{name}: {UNKNOWN_HOST if is_unknown_host(error) else 'the name service does not answer'}"
    if isinstance(error, ssl.SSLError):
        return f"{name}: the TLS handshake failed, {error.reason}"
    if isinstance(error, ConnectionRefusedError):
        return f"{name}: nothing listens at host and port of the database URL"
    if is_without_listener(error):
        return f"{name}: no route to the host of the database URL; is its address one of IPv6, and this network IPv4?"
    return name


def _certificate(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _WRONG_NAME:
        return (
            "the certificate of the database server is for another host name than that of the database URL: write the "
            "name of the certificate, or sslmode=verify-ca"
        )
    return (
        f"the certificate of the database server does not verify (OpenSSL code {error.verify_code}): sslrootcert must "
        "hold the certificate of its authority, and the server's must be valid now"
    )
