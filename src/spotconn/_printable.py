"""Texts for one line of a log or of a terminal: what others have written, and counts."""

_JOINERS = {"\u200c", "\u200d"}
"""Format characters that words and emoji are made of, between characters that are not ASCII."""
_INVISIBLE = {"\u115f", "\u1160", "\u2800", "\u3164", "\uffa0"}
"""Letters and symbols that look like a blank."""
LONGEST_FIELD = 200
"""Characters of a text that `shown` shows."""
LONGEST_SCOPES = 1_000
"""Characters shown of a list of scopes. All of Spotify's have some 600."""


def printable(text: str) -> str:
    r"""Return a text for one line, with escapes such as \x1b for what would steer a terminal or break the line.

    Those are the characters that Unicode does not call printable (controls, format characters such as the overrides of
    the direction, line separators, blanks other than the ASCII one, surrogates) and those that look like a blank.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if (char.isprintable() and char not in _INVISIBLE) or _joins(text, place) else _escaped(char)
        for place, char in enumerate(text)
    )


def shown(text: str, longest: int = LONGEST_FIELD) -> str:
    """Return the beginning of a text for a field of a line: printable, cut with a mark.

    A run of blanks, which could wrap the line so that the rest looks like one of its own, becomes one blank.

    Args:
        text: as it was written, of any length.
        longest: characters of it that are shown.
    """
    start = " ".join(filter(None, printable(text[:longest]).split(" ")))
    return start if len(text) <= longest else "".join((start, f"... ({len(text)} characters)"))


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number and what is counted: `1 connection`, `2 connections`.

    Args:
        number: how many.
        one: the words for one.
        many: the words for another number; by default those for one with an s.
    """
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def _joins(text: str, place: int) -> bool:
    beside = text[max(place - 1, 0) : place], text[place + 1 : place + 2]
    return text[place] in _JOINERS and all(char and not char.isascii() for char in beside)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()
