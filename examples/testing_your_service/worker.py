"""A worker that is started by itself: it makes its manager of the environment."""

import asyncio
import sys
from uuid import UUID

from spotconn import TokenManager
from top_tracks import top_tracks


async def main(user_id: UUID) -> None:
    """Print what a user listens to most."""
    async with TokenManager.from_env() as tokens:
        print(await top_tracks(tokens, user_id))


if __name__ == "__main__":
    asyncio.run(main(UUID(sys.argv[1])))
