"""The HTML of the control page of the simulated Spotify."""

from collections.abc import Iterable, Mapping
from html import escape

from spotconn.testing._issued_tokens import FakeAccount
from spotconn.testing._spotify_pages import account_label, page

ACTIONS = {
    "revoke": "Remove consent",
    "expire-access": "End access tokens",
    "expire-refresh": "End refresh tokens by age",
}
"""What can be done to the consent of an account, with the words of its button."""

DONE = {
    "revoke": "The consent is removed: refresh tokens are revoked, and access tokens work until they end.",
    "expire-access": "The access tokens have ended: the Web API answers 401. One that was granted less than a minute "
    "ago is not replaced: until then a service answers 503.",
    "expire-refresh": "The refresh tokens have ended, as six months after a consent.",
    "rotate-secret": "The app has the other client secret: the former one is refused.",
    "fail": "The next requests will fail.",
    "reset": "Requests are answered as usual.",
}
"""What to write once it is done."""

MOST_FAILURES = 100
SECRET_PATTERN = r"[A-Za-z0-9\-]{1,100}"  # noqa: S105  none
"""A regular expression for client secrets, here and in a browser."""


def control_page(
    accounts: Iterable[FakeAccount],
    granted: Iterable[tuple[FakeAccount, str]],
    failures: Mapping[str, str],
    pending: tuple[int, int],
    *,
    apps: Iterable[str],
    done: str | None,
) -> str:
    """Return the control page.

    Args:
        accounts: all of them.
        granted: accounts, each with the client id of an app that has its consent.
        failures: how requests can fail, each by its key.
        pending: how many failures wait for requests to the token endpoint, and to the Web API.
        apps: the client ids of all apps.
        done: a key of `DONE`, after a form was sent.
    """
    status = f'<p class="done" role="status">{DONE[done]}</p>' if done in DONE else ""
    consents = "".join(_consent(account, client_id) for account, client_id in granted)
    names = ", ".join(escape(account.spotify_user_id) for account in accounts)
    return page(
        "Control",
        f"<h1>Simulated Spotify</h1>{status}<p>Accounts: {names or 'none'}.</p>"
        f"<h2>Consents</h2>{consents or '<p>No account has agreed to an app.</p>'}"
        f"<h2>Failures</h2>{_failures(failures)}{_pending(pending)}"
        f"<h2>Client secret</h2>{_secret(apps)}",
    )


def _consent(account: FakeAccount, client_id: str) -> str:
    buttons = "".join(f'<button name="action" value="{action}">{words}</button>' for action, words in ACTIONS.items())
    return (
        f'<form method="post" action="/">{_hidden("account", account.spotify_user_id)}{_hidden("client_id", client_id)}'
        f"<fieldset><legend>{account_label(account, f', app {client_id}')}</legend>"
        f"{buttons}</fieldset></form>"
    )


def _failures(failures: Mapping[str, str]) -> str:
    options = _options(failures)
    return (
        '<form method="post" action="/"><fieldset><legend>Let the next requests fail</legend>'
        f'<label class="field">Answer <select name="failure">{options}</select></label>'
        f'<label class="field">Requests <input type="number" name="count" min="1" max="{MOST_FAILURES}" value="1"'
        ' required></label><div class="choice"><button class="agree" name="action" value="fail">Let them fail</button>'
        "</div></fieldset></form>"
    )


def _secret(apps: Iterable[str]) -> str:
    return (
        '<form method="post" action="/"><fieldset><legend>Give an app another client secret</legend>'
        f'<label class="field">App <select name="client_id">{_options({app: app for app in apps})}</select></label>'
        f'<label class="field">Client secret <input name="client_secret" pattern="{SECRET_PATTERN}" autocomplete="off"'
        ' required></label><div class="choice">'
        '<button class="agree" name="action" value="rotate-secret">Rotate it</button></div></fieldset></form>'
    )


def _options(words: Mapping[str, str]) -> str:
    return "".join(f'<option value="{escape(key)}">{escape(shown)}</option>' for key, shown in words.items())


def _pending(pending: tuple[int, int]) -> str:
    if not any(pending):
        return ""
    return (
        f"<p>To fail: {pending[0]} of the token endpoint, {pending[1]} of the Web API.</p>"
        '<form method="post" action="/"><div class="choice">'
        '<button name="action" value="reset">Answer as usual</button></div></form>'
    )


def _hidden(name: str, value: str) -> str:
    return f'<input type="hidden" name="{name}" value="{escape(value)}">'
