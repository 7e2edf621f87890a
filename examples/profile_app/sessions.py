"""Who is signed in: sessions in memory, named by a cookie, each with a token for its forms."""

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field

COOKIE = "session"
MOST = 10_000
"""Sessions kept; the one used longest ago goes first."""


@dataclass
class Session:
    """One browser.

    Attributes:
        id: the value of its cookie.
        csrf: to be sent along by every form; a page of another site cannot know it.
        user: the name of who is signed in.
        notice: tone and text to show once.
    """

    id: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    user: str | None = None
    notice: tuple[str, str] | None = None

    def sent_by(self, csrf: object) -> bool:
        """Whether a form with this token came from this session."""
        return isinstance(csrf, str) and secrets.compare_digest(csrf.encode(), self.csrf.encode())

    def take_notice(self) -> tuple[str, str] | None:
        """The notice, if there is one; it is not shown again."""
        notice, self.notice = self.notice, None
        return notice


class Sessions:
    """The sessions of this process."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def get(self, cookie: str | None) -> Session | None:
        """The session that a cookie names."""
        session = self._sessions.get(cookie or "")
        if session is not None:
            self._sessions.move_to_end(session.id)
        return session

    def start(self, user: str | None = None) -> Session:
        """A new session; with a new name at every sign-in, no name known before is of use to anybody."""
        session = Session(user=user)
        self._sessions[session.id] = session
        if len(self._sessions) > MOST:
            self._sessions.popitem(last=False)
        return session

    def end(self, session: Session) -> None:
        """Forget a session."""
        self._sessions.pop(session.id, None)
