"""The HTML pages of the simulated Spotify: their common form, consent, the list of accounts with access, and errors."""

from collections.abc import Iterable, Mapping
from html import escape

from spotconn.testing._issued_tokens import FakeAccount

SCOPE_TEXTS = {
    "user-read-email": "See your email address",
    "user-top-read": "See what you listen to most",
    "user-read-currently-playing": "See what you are playing now",
    "user-read-private": "See your country and kind of subscription",
    "playlist-read-private": "See your private playlists",
}
"""What some scopes allow, as the consent page shows it."""

OTHER_SITE = "This request comes from a page of another site."

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="dark">
<title>{title} - simulated Spotify</title>
<link rel="icon" href="data:,">
<style>
:root {{ --ink: #f4f5f4; --soft: #b3b8b5; --line: #333a36; --card: #171b19; --back: #0d100f; --green: #2fd567 }}
* {{ box-sizing: border-box }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1.25rem;
  font: 1rem/1.5 system-ui, "DejaVu Sans", sans-serif; color: var(--ink); background: var(--back) }}
main {{ width: 100%; max-width: 27rem; padding: 1.75rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 1rem }}
.note {{ margin: 0 0 1.25rem; padding-bottom: 1rem; border-bottom: 1px solid var(--line); font-size: .875rem;
  color: var(--soft) }}
h1 {{ margin: 0 0 .5rem; font-size: 1.375rem; line-height: 1.25 }}
p, ul {{ margin: 0 0 1rem }}
ul {{ padding-left: 1.25rem; color: var(--soft) }}
fieldset {{ margin: 0 0 1.5rem; padding: 0; border: 0; display: grid; gap: .5rem }}
legend {{ padding: 0; margin-bottom: .5rem; font-weight: 600 }}
label, .app {{ display: flex; align-items: center; gap: .75rem; padding: .75rem 1rem; border: 1px solid var(--line);
  border-radius: .75rem }}
label {{ cursor: pointer }}
label:hover, label:has(:checked) {{ border-color: var(--green) }}
label span, .app span {{ flex: 1 }}
small {{ display: block; color: var(--soft) }}
input {{ accent-color: var(--green); width: 1.125rem; height: 1.125rem; margin: 0 }}
h2 {{ margin: 1.75rem 0 .75rem; font-size: 1.125rem }}
label.field {{ display: grid; gap: .25rem; padding: 0; border: 0; cursor: auto }}
.field input, .field select {{ width: 100%; height: auto; min-height: 2.75rem; padding: .5rem .75rem; font: inherit;
  color: inherit; background: var(--back); border: 1px solid var(--soft); border-radius: .5rem }}
.done {{ padding: .75rem 1rem; border: 1px solid var(--green); border-radius: .75rem }}
.choice {{ display: flex; gap: .75rem; flex-wrap: wrap }}
button {{ flex: 1; min-height: 2.75rem; padding: .5rem 1.25rem; font: inherit; font-weight: 600; border-radius: 2rem;
  cursor: pointer; color: var(--ink); background: none; border: 1px solid var(--soft) }}
button.agree {{ color: #06130a; background: var(--green); border-color: var(--green) }}
.app + .app {{ margin-top: .5rem }}
.app button {{ flex: none }}
:focus-visible {{ outline: 3px solid #fff; outline-offset: 2px }}
</style>
</head>
<body>
<main>
<p class="note">This is a simulation on your own machine. Nothing is sent to Spotify.</p>
{main}
</main>
</body>
</html>
"""


def error_page(fault: str) -> str:
    """Return the page for an invalid authorization request, which Spotify shows instead of a redirect."""
    return page("Error", f"<h1>Error</h1><p>{escape(fault)}</p>")


def consent_page(query: Mapping[str, str], accounts: Iterable[FakeAccount]) -> str:
    """Return the page to agree or cancel as one of the accounts. Its form repeats the request."""
    hidden = "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">' for name, value in query.items()
    )
    choices = "".join(_choice(account, first=place == 0) for place, account in enumerate(accounts))
    scopes = "".join(f"<li>{escape(SCOPE_TEXTS.get(name, name))}</li>" for name in query.get("scope", "").split())
    return page(
        "Agree",
        "<h1>Connect the app to your account?</h1><p>It will be able to:</p>"
        f"<ul><li>See your public profile</li>{scopes}</ul>"
        f'<form method="post" action="/authorize">{hidden}'
        f"<fieldset><legend>Your account</legend>{choices}</fieldset>"
        '<div class="choice"><button class="agree" name="decision" value="agree">Agree</button>'
        '<button name="decision" value="cancel" formnovalidate>Cancel</button></div></form>',
    )


def apps_page(granted: Iterable[tuple[FakeAccount, str]], *, name_apps: bool) -> str:
    """Return the page of what accounts have agreed to, each entry with a button to remove access.

    Args:
        granted: accounts, each with the client id of an app that it has agreed to.
        name_apps: whether the entries name their apps, as there are several.
    """
    entries = "".join(_granted(account, client_id if name_apps else None) for account, client_id in granted)
    return page("Apps", f"<h1>Accounts with access</h1>{entries or '<p>No account has agreed to the app.</p>'}")


def page(title: str, main: str) -> str:
    """Return a page with a title and the HTML of its main part."""
    return _PAGE.format(title=title, main=main)


def account_label(account: FakeAccount, detail: str = "") -> str:
    """Return an account as HTML: its name, and its id with a detail."""
    spotify_user_id = escape(account.spotify_user_id)
    name = escape(account.display_name or "") or spotify_user_id
    return f"<span>{name}<small>{spotify_user_id}{escape(detail)}</small></span>"


def _choice(account: FakeAccount, *, first: bool) -> str:
    value, checked = escape(account.spotify_user_id), " checked" if first else ""
    button = f'<input type="radio" name="account" value="{value}" required{checked}>'
    return f"<label>{button}{account_label(account)}</label>"


def _granted(account: FakeAccount, client_id: str | None) -> str:
    """Return the entry of an account, or with a client id that of the account and the app."""
    label, hidden = account_label(account), ""
    if client_id is not None:
        label = account_label(account, f", app {client_id}")
        hidden = f'<input type="hidden" name="client_id" value="{escape(client_id)}">'
    return (
        f'<form class="app" method="post" action="/account/apps">{hidden}{label}'
        f'<button name="account" value="{escape(account.spotify_user_id)}">Remove access</button></form>'
    )
