"""Who is signed in: sessions in memory, named by a cookie, each with a token for the forms to sign in and out."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

MOST = 10
"""Sessions of one user; the one that began first goes first. Nobody else's go with it."""

_ID = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


def cookie_name(*, secure: bool) -> str:
    """The name of the cookie. The prefix, with https, lets no other host of the domain and no page of http set it.

    On http, here only of loopback, not every browser accepts a cookie that is Secure, which the prefix needs.
    """
    return "__Host-session" if secure else "session"


@dataclass
class Session:
    """One browser.

    Attributes:
        id: the value of its cookie.
        csrf: to be sent along by the forms to sign in and out; a page of another site cannot know it.
        user: the name of who is signed in.
    """

    id: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    user: str | None = None

    def sent_by(self, csrf: object) -> bool:
        """Whether a form with this token came from this session."""
        return isinstance(csrf, str) and secrets.compare_digest(csrf.encode(), self.csrf.encode())


class Sessions:
    """The sessions of this process: those of users are kept, those of visitors are not."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._sessions: dict[str, Session] = {}

    def get(self, cookie: str | None) -> Session | None:
        """The session of a user that a cookie names."""
        return self._sessions.get(cookie or "")

    def visitor(self, cookie: str | None) -> Session:
        """The session of somebody who has not signed in. It is not kept: its token follows from its cookie."""
        session_id = cookie if cookie and _ID.fullmatch(cookie) else secrets.token_urlsafe(32)
        return Session(id=session_id, csrf=hmac.new(self._key, session_id.encode(), hashlib.sha256).hexdigest())

    def start(self, user: str) -> Session:
        """A new session; with a new name at every sign-in, no name known before is of use to anybody."""
        session = Session(user=user)
        self._sessions[session.id] = session
        own = [one for one in self._sessions.values() if one.user == user]
        for old in own[:-MOST]:
            self.end(old)
        return session

    def end(self, session: Session) -> None:
        """Forget a session."""
        self._sessions.pop(session.id, None)
