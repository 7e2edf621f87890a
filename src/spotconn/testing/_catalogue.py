"""The bodies of the simulated Web API, complete enough for clients that check every field."""

from hashlib import sha256
from typing import Any

from spotconn.testing._issued_tokens import FakeAccount

TRACKS = (
    ("First Light over the Harbour", "The Loopback Trio", 214),
    ("Nine Lanterns", "Paper Satellites", 187),
    ("Slow Train, Open Window", "The Loopback Trio", 263),
    ("Cobalt", "Ground Control Choir", 201),
    ("What the Tide Left", "Paper Satellites", 242),
    ("Half Past Summer", "Low Season", 176),
    ("A Map of the Stairs", "Ground Control Choir", 229),
    ("Northbound", "Low Season", 198),
)
"""Title, artist and seconds of each track."""


def user(account: FakeAccount, scope: frozenset[str]) -> dict[str, Any]:
    """Return an account as GET /v1/me does to an app outside of development mode."""
    body: dict[str, Any] = _thing("user", account.spotify_user_id) | {
        "account_id": account.account_id or _id("account", account.spotify_user_id),
        "display_name": account.display_name,
        "followers": {"href": None, "total": 0},
        "images": [_image(account.spotify_user_id, size) for size in (300, 64)],
    }
    if "user-read-email" in scope and account.email:
        body["email"] = account.email
    if "user-read-private" in scope:
        explicit_content = {"filter_enabled": False, "filter_locked": False}
        body |= {"country": account.country, "product": account.product, "explicit_content": explicit_content}
    return body


def tracks_of(spotify_user_id: str) -> list[dict[str, Any]]:
    """Return all tracks in the order of one account: always the same, and different from that of other accounts."""
    first = sum(spotify_user_id.encode()) % len(TRACKS)
    return [_track(*track) for track in TRACKS[first:] + TRACKS[:first]]


def search(text: str) -> dict[str, Any]:
    """Return the tracks that have a text in their title or the name of their artist, as GET /v1/search does."""
    found = [_track(*track) for track in TRACKS if text.lower() in f"{track[0]} {track[1]}".lower()]
    return {"tracks": {"items": found, "limit": len(TRACKS), "next": None, "offset": 0, "total": len(found)}}


def _track(name: str, artist: str, seconds: int) -> dict[str, Any]:
    by = [_named("artist", artist)]
    album = _named("album", name) | {
        "album_type": "single",
        "artists": by,
        "images": [],
        "release_date": "2020-02-20",
        "release_date_precision": "day",
        "total_tracks": 1,
    }
    return _named("track", name) | {
        "album": album,
        "artists": by,
        "disc_number": 1,
        "duration_ms": seconds * 1000,
        "explicit": False,
        "external_ids": {},
        "is_local": False,
        "popularity": 50,
        "preview_url": None,
        "track_number": 1,
    }


def _image(name: str, size: int) -> dict[str, Any]:
    return {"url": f"https://i.scdn.co/image/{_id(f'image {size}', name)}", "height": size, "width": size}


def _named(kind: str, name: str) -> dict[str, Any]:
    return _thing(kind, _id(kind, name)) | {"name": name}


def _thing(kind: str, spotify_id: str) -> dict[str, Any]:
    return {
        "id": spotify_id,
        "type": kind,
        "uri": f"spotify:{kind}:{spotify_id}",
        "href": f"https://api.spotify.com/v1/{kind}s/{spotify_id}",
        "external_urls": {"spotify": f"https://open.spotify.com/{kind}/{spotify_id}"},
    }


def _id(kind: str, name: str) -> str:
    """Return an id of 22 characters, like those of Spotify."""
    return sha256(f"{kind} {name}".encode()).hexdigest()[:22]
