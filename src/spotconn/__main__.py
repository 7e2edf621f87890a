"""The command `spotconn`, also as `python -m spotconn`."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command, or say how to install what it needs."""
    if any(find_spec(name) is None for name in ("typer", "rich")):
        sys.exit('spotconn: the command needs an extra: pip install "spotconn[cli]"')
    from spotconn import cli  # noqa: PLC0415  it imports the extra

    cli.main()


if __name__ == "__main__":
    main()
