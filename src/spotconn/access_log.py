"""Access logs without the codes and states of callbacks, for servers of any framework."""

import copy
import logging
import re
from typing import Any, cast

_SECRET = re.compile(r"""(^|[?&])(code|state)=[^&#\s"'\\]+""")


class CallbackFilter(logging.Filter):
    """Replaces the values of `code` and `state` in the URLs of log records by "-".

    It is for the access logs of uvicorn ("uvicorn.access") and gunicorn ("gunicorn.access", with any
    `access_log_format`), as a filter of the logger or of a handler. It drops no record.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Alter the record in place, and let it pass."""
        if not record.args:
            record.msg = _without_secrets(record.msg)
        elif isinstance(record.args, tuple):
            record.args = tuple(map(_without_secrets, record.args))
        else:
            # The atoms of gunicorn: a dict of a class of its own, which has "-" for what is not there.
            atoms = cast("dict[str, Any]", copy.copy(record.args))
            atoms.update({name: _without_secrets(value) for name, value in atoms.items()})
            record.args = atoms
        return True


def _without_secrets(value: Any) -> Any:
    return _SECRET.sub(r"\1\2=-", value) if isinstance(value, str) else value
