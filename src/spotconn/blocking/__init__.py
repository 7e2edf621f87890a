"""Tokens for synchronous code: Celery, RQ, Flask, Django, scripts and threads."""

from spotconn.blocking._requests_auth import BlockingAuth
from spotconn.blocking._tokens import BlockingTokens

__all__ = ["BlockingAuth", "BlockingTokens"]
