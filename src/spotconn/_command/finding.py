"""A line of the doctor's report."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


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
