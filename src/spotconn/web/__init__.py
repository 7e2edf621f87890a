"""Connect, callback, status and disconnect as routes of a web service.

`SpotifyRoutes` is mounted into an app of Starlette or FastAPI; `problem_details` answers the errors of the library by
RFC 9457, and `PROBLEM_RESPONSES` describes these answers to FastAPI; `CallbackFilter` takes codes and states out of
access logs. Install with `pip install "spotconn[web]"`.
"""

from spotconn.access_log import CallbackFilter

try:
    from spotconn.web._problems import PROBLEM_RESPONSES, problem_details
    from spotconn.web._routes import SpotifyRoutes
except ModuleNotFoundError as _error:
    if (_error.name or "").partition(".")[0] != "starlette":
        raise
    raise ImportError('spotconn.web needs an extra: pip install "spotconn[web]"') from None

__all__ = ["PROBLEM_RESPONSES", "CallbackFilter", "SpotifyRoutes", "problem_details"]
