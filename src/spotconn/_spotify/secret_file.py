"""A client secret that stands in a file."""

from dataclasses import dataclass
from pathlib import Path

from spotconn.errors import ConfigurationError


@dataclass(frozen=True)
class SecretFile:
    """Reads a client secret from a file each time that it is called, without the blank space around it.

    Attributes:
        path: of the file.
        variable: that names it, for errors.
    """

    path: str
    variable: str

    def __call__(self) -> str:
        """Return the secret.

        Raises:
            ConfigurationError: the file cannot be read; the text names the variable.
        """
        try:
            return Path(self.path).read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            problem = type(error).__name__
        # Outside of the handler: a UnicodeDecodeError holds what the file does.
        raise ConfigurationError(f"the file of {self.variable} cannot be read ({problem})")
