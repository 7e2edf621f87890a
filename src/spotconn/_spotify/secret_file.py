"""A client secret that stands in a file."""

from pathlib import Path

from spotconn.errors import ConfigurationError


class SecretFile:
    """Reads a client secret from a file each time that it is called, without the blank space around it.

    Args:
        path: of the file.
        variable: that names it, for errors.
    """

    def __init__(self, path: str, variable: str) -> None:
        self._path = path
        self._variable = variable

    def __call__(self) -> str:
        """Return the secret.

        Raises:
            ConfigurationError: the file cannot be read; the text names the variable.
        """
        try:
            return Path(self._path).read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            problem = type(error).__name__
        # Outside of the handler: a UnicodeDecodeError holds what the file does.
        raise ConfigurationError(f"the file of {self._variable} cannot be read ({problem})")
