"""The HTML of the profile page."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from html import escape

from music import Track
from sessions import Session
from spotconn import ConnectionStatus

WARNED = timedelta(days=30)
"""How long before the day it is due a user is asked to authorize again."""

ENDED = {
    "expired": "Spotify ended the connection, as it does six months after you agreed.",
    "revoked": "You removed this app from your Spotify account.",
    "invalid": "Spotify no longer accepts the connection.",
    "other_app": "This service uses another Spotify app now.",
}
WORDS = {
    "user-read-email": "Your email address",
    "user-top-read": "What you listen to most",
}


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


NO_FIELD = Html()
ASK_AGAIN = Html('<input type="hidden" name="show_dialog" value="true">')
"""Spotify asks again, so that another account can be chosen."""


def html(template: str, **values: object) -> Html:
    """Fill a template; every value that is not HTML is escaped."""
    return Html(
        template.format_map(
            {name: value if isinstance(value, Html) else escape(str(value)) for name, value in values.items()}
        )
    )


def joined(parts: Iterable[Html]) -> Html:
    """Several pieces of HTML as one."""
    return Html("".join(parts))


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/style.css">
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header class="top"><div class="wide"><span class="brand">Profile</span>{who}</div></header>
<main id="main" class="wide" tabindex="-1">
{main}
</main>
</body>
</html>
"""


def sign_in_page(session: Session, users: list[str]) -> Html:
    """Who are you?"""
    buttons = joined(
        html(
            '<button class="user" name="user" value="{user}">{mark}<span>{name}</span></button>',
            user=user,
            mark=_mark(user),
            name=user.capitalize(),
        )
        for user in users
    )
    main = html(
        '<section class="card narrow"><h1>Sign in</h1>'
        '<p class="soft">This is a demo: choose who you are, no password is asked.</p>'
        '<form method="post" action="/sign-in" class="users">{csrf}{buttons}</form></section>',
        csrf=_csrf(session),
        buttons=buttons,
    )
    return _page(session, "Sign in", main)


def profile_page(
    session: Session,
    status: ConnectionStatus,
    tracks: list[Track] | str,
    *,
    notice: tuple[str, str] | None,
    apps_url: str,
    now: datetime,
) -> Html:
    """The user and their connection."""
    main = html(
        '<div class="hello">{mark}<div><h1>{name}</h1><p class="soft">Your profile</p></div></div>'
        "{banner}{card}{music}",
        mark=_mark(session.user or ""),
        name=(session.user or "").capitalize(),
        banner=_banner(status, now),
        card=_connection(status, apps_url),
        music=_music(tracks) if status.connected and not status.reauthorization else Html(),
    )
    return _page(session, "Profile", html("{notice}{main}", notice=_notice(notice), main=main))


def problem_page(session: Session, words: str) -> Html:
    """Something went wrong."""
    main = html(
        '<section class="card narrow"><h1>That did not work</h1><p>{words}</p>'
        '<p><a class="button quiet" href="/">Back to the page</a></p></section>',
        words=words,
    )
    return _page(session, "That did not work", main)


def _page(session: Session, title: str, main: Html) -> Html:
    who = Html()
    if session.user is not None:
        who = html(
            '<form method="post" action="/sign-out">{csrf}<button class="link">Sign out</button></form>',
            csrf=_csrf(session),
        )
    return html(PAGE, title=title, who=who, main=main)


def _notice(notice: tuple[str, str] | None) -> Html:
    if notice is None:
        return Html()
    tone, words = notice
    role = "alert" if tone == "bad" else "status"
    return html('<p class="notice {tone}" role="{role}">{words}</p>', tone=tone, role=role, words=words)


def _banner(status: ConnectionStatus, now: datetime) -> Html:
    due = status.reauthorize_by
    if due is None or status.reauthorization or now < due - WARNED:
        return Html()
    return html(
        '<p class="notice warn" id="due">Spotify ends this connection on {due}. Reconnect before then and nothing is '
        "interrupted.</p>",
        due=_day(due),
    )


def _connection(status: ConnectionStatus, apps_url: str) -> Html:
    if not status.connected:
        body = html(
            "<p>Connect your Spotify account to see here what you listen to most.</p>"
            '<div class="actions">{connect}</div>',
            connect=_button("/spotify/connect", "Connect Spotify", "main"),
        )
        return _card("off", "Not connected", body)
    if status.reauthorization:
        since = status.reauthorization_since  # none of an app that is retired
        body = html(
            '<p id="ended">{ended}{noticed}</p>{facts}<div class="actions">{again}{end}</div>{small}',
            ended=ENDED[status.reauthorization],
            noticed=html(" It was noticed on {since}.", since=_day(since)) if since else Html(),
            facts=_facts(status),
            again=_button("/spotify/connect", "Connect again", "main", ASK_AGAIN),
            end=_button("/spotify/disconnect", "Disconnect", "quiet"),
            small=_small_print(apps_url),
        )
        return _card("ended", "Connect again", body)
    body = html(
        '{facts}<div class="actions">{again}{end}</div>{small}',
        facts=_facts(status),
        again=_button("/spotify/connect", "Reconnect", "quiet", ASK_AGAIN),
        end=_button("/spotify/disconnect", "Disconnect", "quiet danger"),
        small=_small_print(apps_url),
    )
    return _card("on", "Connected", body)


def _card(state: str, words: str, body: Html) -> Html:
    return html(
        '<section class="card" aria-labelledby="spotify"><div class="head"><h2 id="spotify">Spotify</h2>'
        '<span class="state {state}" id="state">{words}</span></div>{body}</section>',
        state=state,
        words=words,
        body=body,
    )


def _facts(status: ConnectionStatus) -> Html:
    scopes = joined(html("<li>{scope}</li>", scope=WORDS.get(name, name)) for name in sorted(status.scope or ()))
    facts = [
        ("Account", html('<span id="account">{name}</span>', name=status.display_name or status.spotify_user_id or "")),
        ("Spotify ID", html('<span id="spotify-id">{id}</span>', id=status.spotify_user_id or "")),
        ("Email", html("{email}", email=status.email) if status.email else None),
        ("It may see", html('<ul class="plain">{scopes}</ul>', scopes=scopes) if scopes else None),
        ("Connected since", _day(status.connected_at)),
        ("Authorize again by", None if status.reauthorization else _day(status.reauthorize_by)),
    ]
    return html(
        "<dl>{facts}</dl>",
        facts=joined(
            html("<div><dt>{name}</dt><dd>{value}</dd></div>", name=name, value=value) for name, value in facts if value
        ),
    )


def _small_print(apps_url: str) -> Html:
    return html(
        '<p class="small">Disconnect deletes the tokens here. To end your consent at Spotify itself, remove the app at '
        '<a href="{url}" rel="noreferrer">www.spotify.com/account/apps</a>.</p>',
        url=apps_url,
    )


def _music(tracks: list[Track] | str) -> Html:
    if isinstance(tracks, str):
        body = html('<p class="soft">{words}</p>', words=tracks)
    elif not tracks:
        body = html('<p class="soft">Spotify knows of nothing yet.</p>')
    else:
        body = html('<ol class="tracks">{items}</ol>', items=joined(_item(track) for track in tracks))
    return html(
        '<section class="card" aria-labelledby="music"><div class="head"><h2 id="music">Your top tracks</h2></div>'
        "{body}</section>",
        body=body,
    )


def _item(track: Track) -> Html:
    return html(
        '<li><span class="title">{name}<small>{artists}</small></span>'
        '<span class="time">{minutes}:{seconds}</span></li>',
        name=track.name,
        artists=track.artists,
        minutes=track.seconds // 60,
        seconds=f"{track.seconds % 60:02}",
    )


def _button(action: str, words: str, kind: str, field: Html = NO_FIELD) -> Html:
    return html(
        '<form method="post" action="{action}">{field}<button class="button {kind}">{words}</button></form>',
        action=action,
        field=field,
        kind=kind,
        words=words,
    )


def _csrf(session: Session) -> Html:
    return html('<input type="hidden" name="csrf" value="{csrf}">', csrf=session.csrf)


def _mark(user: str) -> Html:
    return html('<span class="mark" aria-hidden="true">{letter}</span>', letter=user[:1].upper())


def _day(moment: datetime | None) -> Html:
    if moment is None:
        return Html("unknown")
    return html('<time datetime="{moment}">{day}</time>', moment=moment.isoformat(), day=f"{moment:%-d %B %Y}")
