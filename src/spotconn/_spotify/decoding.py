"""The body of an answer, decoded within bounds.

This library asks for answers that are not compressed, but a proxy may compress them once, and the only good refresh
token may be in one. `httpx` would undo any number of encodings, each in one piece: 484 bytes can become 636 MB.
"""

import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

from spotconn._spotify.http_library import PassedStream, classes
from spotconn.errors import SpotifyUnavailable

LARGEST_BODY = 64 * 1024
"""Bytes of an answer that are read, as sent and as decoded; a grant or a profile has about one thousand."""

_GZIP = {"gzip", "x-gzip"}
_PLAIN = {"", "identity"}
_GZIP_WINDOW = 16 + zlib.MAX_WBITS  # with the header and the trailer of gzip (RFC 1952)
_MEMBER = b"\x1f"


def limit(response: Any) -> None:
    """Have a response that was not read yet decoded within `LARGEST_BODY` bytes, and not by its client.

    Args:
        response: of a client of either library.

    Raises:
        SpotifyUnavailable: it is encoded in another way than once with gzip.
    """
    if response.is_stream_consumed or not isinstance(response.stream, classes("AsyncByteStream")):
        return
    encodings = response.headers.get_list("content-encoding", split_commas=True)
    names = {name.strip().lower() for name in encodings}
    if len(encodings) > 1 or not names <= _GZIP | _PLAIN:
        raise SpotifyUnavailable("Spotify gave an unreadable answer: encoded in another way than once with gzip")
    response.headers.pop("content-encoding", None)
    response.stream = _LimitedStream(response.stream, _Gunzip() if names & _GZIP else _unchanged)


def check_size(size: int) -> None:
    """Raise SpotifyUnavailable for a body that is too large."""
    if size > LARGEST_BODY:
        raise SpotifyUnavailable(f"Spotify gave an unreadable answer: over {LARGEST_BODY} bytes")


def _unchanged(chunk: bytes) -> Iterator[bytes]:
    yield chunk


class _LimitedStream(PassedStream):
    """A stream that is decoded, and ends with SpotifyUnavailable once it is too long.

    Args:
        stream: as sent.
        decode: yields what a chunk decodes to, in pieces of at most `LARGEST_BODY` bytes.
    """

    def __init__(self, stream: Any, decode: Callable[[bytes], Iterator[bytes]]) -> None:
        super().__init__(stream)
        self._decode = decode

    async def __aiter__(self) -> AsyncIterator[bytes]:
        sent = decoded = 0
        async for chunk in self._stream:
            sent += len(chunk)
            check_size(sent)
            for piece in self._decode(chunk):
                decoded += len(piece)
                check_size(decoded)
                yield piece


class _Gunzip:
    """Undoes gzip, member by member (RFC 1952, section 2.2); what follows the last one and is none is left out.

    The end of a member may be missing: whether all has come, the JSON in it tells.
    """

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP_WINDOW)
        self._over = False

    def __call__(self, chunk: bytes) -> Iterator[bytes]:
        while chunk and not self._over:
            if self._member.eof:
                self._over = not chunk.startswith(_MEMBER)
                self._member = zlib.decompressobj(_GZIP_WINDOW)
                continue
            yield self._decompressed(chunk)
            chunk = self._member.unconsumed_tail or self._member.unused_data

    def _decompressed(self, chunk: bytes) -> bytes:
        with suppress(zlib.error):
            return self._member.decompress(chunk, LARGEST_BODY)
        raise SpotifyUnavailable("Spotify gave an unreadable answer: its encoding is broken")
