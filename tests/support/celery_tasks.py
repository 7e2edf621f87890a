"""Tasks of a real Celery with one BlockingTokens for all its processes; broker and answers are folders."""

import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from celery import Celery
from celery.signals import worker_process_shutdown

from spotconn import ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.blocking import BlockingTokens

FOLDER = Path(os.environ["CELERY_FOLDER"])
QUEUE, ANSWERS = FOLDER / "queue", FOLDER / "answers"
for folder in (QUEUE, ANSWERS):
    folder.mkdir(exist_ok=True)


@asynccontextmanager
async def opened() -> AsyncGenerator[TokenManager]:
    url = os.environ["SPOTIFY_URL"]
    async with (
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url) as accounts,
        ConnectionStore.open(os.environ["DATABASE_URL"], min_size=1, max_size=2) as store,
        TokenManager(store, accounts) as manager,
    ):
        yield manager


TOKENS = BlockingTokens(opened)
if "WARM_UP" in os.environ and Path("/proc/self/cmdline").read_bytes().count(b"worker"):
    TOKENS.get_valid_token(os.environ["WARM_UP"])  # the parent of the pool has it open before it forks

app = Celery("celery_tasks", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": str(QUEUE),
    "data_folder_out": str(QUEUE),
    "control_folder": str(FOLDER / "control"),
    "polling_interval": 0.01,
}


@app.task
def answer(number: int, user: str) -> None:
    """Write the process and the token that it has for a user."""
    written = FOLDER / f"{number}"
    written.write_text(json.dumps([os.getpid(), TOKENS.get_valid_token(user)]))
    written.rename(ANSWERS / written.name)


@worker_process_shutdown.connect
def close(**_: object) -> None:
    TOKENS.close()
