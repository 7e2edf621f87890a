"""The parameters of TLS in a database URL, and the files that they name, looked at before the driver does."""

import os
import ssl
from pathlib import Path
from typing import Any

_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_LIST = ", ".join(_MODES)
_VERIFYING = ("verify-ca", "verify-full")
_VARIABLES = {
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcrl": "PGSSLCRL",
}
"""Parameters by the variables that asyncpg reads in their place."""


def check_tls(parameters: dict[str, str], options: dict[str, Any]) -> str | None:
    """Return what is wrong with the parameters of TLS and what to do, None if nothing is.

    Args:
        parameters: of the URL.
        options: of `asyncpg.create_pool`. With `ssl` among them asyncpg does not read the parameters, unless that is a
            text: it goes before sslmode.
    """
    ssl_option = options.get("ssl")
    if ssl_option is not None and not isinstance(ssl_option, str):
        return None
    names = {name: name if parameters.get(name) else variable for name, variable in _VARIABLES.items()}
    values = {name: parameters.get(name) or os.environ.get(variable, "") for name, variable in _VARIABLES.items()}
    mode = (ssl_option or values["sslmode"]).replace("_", "-") or "prefer"
    if mode not in _MODES:
        advice = "has node-postgres's no-verify: write require" if mode == "no-verify" else f"is none of {_LIST}"
        return f"{'the option ssl' if ssl_option else names['sslmode']} {advice}"
    if mode == "disable":
        return None
    demanded = ["sslrootcert", "sslcrl"] if mode in (*_VERIFYING, "require") else []
    for name in (*demanded, "sslcert", "sslkey"):
        if values[name] and (problem := _file_problem(values[name])):
            return f"{names[name]} {problem}"
    is_known = "service" in parameters or os.environ.get("PGSERVICE") or _has_default_root()
    if mode in _VERIFYING and not values["sslrootcert"] and not is_known:
        return (
            f"sslmode={mode} needs sslrootcert: the file with the certificate of the server's authority, such as "
            "/etc/ssl/certs/ca-certificates.crt or the one that your provider gives"
        )
    return _content_problem(values, names, demanded, parameters.get("sslpassword", ""))


def _file_problem(text: str) -> str | None:
    path = Path(text)
    if path.is_dir():
        return "names a folder: write the path of a file"
    if path.exists():
        return None if os.access(path, os.R_OK) else "names a file that this process may not read"
    if text == "system":
        return "=system is libpq's: write the path of the system's file, such as /etc/ssl/certs/ca-certificates.crt"
    if text.startswith("~"):
        return "begins with ~, which nobody expands: write the whole path"
    relative = "" if path.is_absolute() else "; its path is relative, and counts from the working directory"
    return f"names a file that does not exist{relative}: write the whole path of one that does"


def _has_default_root() -> bool:
    try:
        return (Path.home() / ".postgresql" / "root.crt").exists()
    except (RuntimeError, OSError):
        return False


def _content_problem(values: dict[str, str], names: dict[str, str], demanded: list[str], password: str) -> str | None:
    """Return which file does not hold what it should."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in demanded:
        if values[name]:
            try:
                context.load_verify_locations(cafile=values[name])
            except (ssl.SSLError, OSError):
                return f"{names[name]} names a file without a certificate in the form PEM"
    if values["sslcert"]:
        try:
            context.load_cert_chain(values["sslcert"], values["sslkey"] or _default_key(), password=lambda: password)
        except (ssl.SSLError, OSError, ValueError):
            return (
                f"{names['sslcert']} and {names['sslkey']} do not name a certificate and its key in the form PEM, or "
                "sslpassword is not that of the key"
            )
    return None


def _default_key() -> Path | None:
    try:
        path = Path.home() / ".postgresql" / "postgresql.key"
        return path if path.exists() else None
    except (RuntimeError, OSError):
        return None
