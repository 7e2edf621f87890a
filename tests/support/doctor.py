"""What the doctor finds with settings that are right but for what a test changes."""

from spotconn import AesGcmSivCipher
from spotconn._command.doctor import examine
from spotconn._command.finding import Finding

KEY = AesGcmSivCipher.generate_key()
HEALTHY = {
    "SPOTIFY_CLIENT_ID": "0123456789abcdef" * 2,
    "SPOTIFY_CLIENT_SECRET": "fedcba9876543210" * 2,
    "SPOTIFY_REDIRECT_URI": "https://example.org/callback",
    "SPOTCONN_ENCRYPTION_KEYS": KEY,
}


async def look(dsn: str, **changes: str) -> dict[str, Finding]:
    """The findings by their subject."""
    return {one.subject: one async for one in examine(HEALTHY | {"DATABASE_URL": dsn} | changes)}
