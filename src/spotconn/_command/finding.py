"""A line of the doctor's report."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from spotconn.errors import SpotconnError


class Finding(BaseModel):
    """One line of the doctor.

    Attributes:
        state: "ok", "warn" (it works, but mind this), "fail" (mend this) or "skip" (not used, or not to be seen).
        subject: what was looked at.
        text: what was found.
        remedy: what to do about it.
    """

    model_config = ConfigDict(frozen=True)

    state: Literal["ok", "warn", "fail", "skip"]
    subject: str
    text: str
    remedy: str | None = None


def failed(subject: str, error: Exception, *, remedy: str | None = None) -> Finding:
    """Return the finding about an error.

    Args:
        subject: what was looked at.
        error: of the library, whose text says what to do, or of any other class: its text may hold a row or a secret.
        remedy: what to do about an error of the library.
    """
    if isinstance(error, SpotconnError):
        return Finding(state="fail", subject=subject, text=str(error), remedy=remedy)
    return Finding(
        state="fail",
        subject=subject,
        text=f"not examined: unexpected {type(error).__name__}",
        remedy="run spotconn doctor again, and report it if it comes again",
    )
