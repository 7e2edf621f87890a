"""The test kit of the library, public so that a service that uses the library can be tested in the same way.

`FakeSpotify` behaves as Spotify's accounts service and `GET /v1/me`; `EmbeddedPostgres` is a private server on
loopback; `apply_schema` and `add_user` prepare a database; `FakeClock` is a clock that a test moves, and
`step_database_clock` moves that of the database. pytest finds fixtures that use them. Install with
`pip install "spotconn[testing]"`.
"""

from spotconn.testing._answers import Answer
from spotconn.testing._clock import FakeClock
from spotconn.testing._database import add_user, apply_schema, step_database_clock
from spotconn.testing._hold import Hold
from spotconn.testing._postgres import EmbeddedPostgres, postgres_binaries

try:
    from spotconn.testing._issued_tokens import FakeAccount
    from spotconn.testing._spotify import FakeSpotify
except ModuleNotFoundError:
    raise ImportError('spotconn.testing needs an extra: pip install "spotconn[testing]"') from None

__all__ = [
    "Answer",
    "EmbeddedPostgres",
    "FakeAccount",
    "FakeClock",
    "FakeSpotify",
    "Hold",
    "add_user",
    "apply_schema",
    "postgres_binaries",
    "step_database_clock",
]
