"""Tokens that another program has encrypted with Fernet, for a migration."""

from collections.abc import Callable, Mapping
from contextlib import suppress

from spotconn.errors import ConfigurationError


def fernet_decrypt(environ: Mapping[str, str], name: str) -> Callable[[str], str | None]:
    """Return what decrypts a token of the other table; it returns None for what these keys do not decrypt.

    Args:
        environ: as `os.environ`.
        name: of the variable with the key; several with commas between them.

    Raises:
        ConfigurationError: the variable is missing or malformed, or the extra is not installed.
    """
    try:
        from cryptography.fernet import Fernet, InvalidToken, MultiFernet  # noqa: PLC0415  an extra
    except ImportError:
        raise ConfigurationError('encryption needs an extra: pip install "spotconn[crypto]"') from None
    keys = [key.strip() for key in environ.get(name, "").split(",") if key.strip()]
    ring: MultiFernet | None = None
    with suppress(ValueError):
        ring = MultiFernet([Fernet(key) for key in keys])
    if ring is None:
        raise ConfigurationError(f"{name}: expected one or more keys of Fernet, with commas between them")

    def decrypt(text: str) -> str | None:
        try:
            return ring.decrypt(text.strip()).decode("ascii")
        except (InvalidToken, ValueError):
            return None

    return decrypt
