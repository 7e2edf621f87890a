"""A simulated Spotify that has its own opinion of odd tokens and of codes that it has not given."""

from collections.abc import Mapping

from spotconn.testing import Answer, FakeSpotify

ODD = "odd:"
"""The refresh token `odd:ERROR` is answered with that error."""
RETRY_AFTER = "3600"
"""Seconds that the caller has to wait who exchanges made-up codes."""

Reply = tuple[int, dict[str, str]]


class StrictSpotify(FakeSpotify):
    """Answers a refresh token that begins with `odd:` with the error that follows, and made-up codes with 429."""

    async def token_answer(self, form: Mapping[str, str], authorization: str | None) -> Reply | Answer:
        """Return the answer to a call of the token endpoint."""
        if form.get("grant_type") == "authorization_code":
            return Answer.too_many_requests(RETRY_AFTER)
        token = form.get("refresh_token", "")
        if token.startswith(ODD):
            return 400, {"error": token.removeprefix(ODD)}
        return await super().token_answer(form, authorization)
