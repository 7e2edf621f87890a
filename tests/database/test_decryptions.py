"""When values that do not decrypt are evidence against the keys of this process."""

from uuid import UUID

import pytest

from spotconn import DecryptionError
from spotconn._database.decryptions import MOST_USERS, Decryptions
from spotconn.testing import FakeClock

USERS = [UUID(int=number) for number in range(10)]


def fails(decryptions: Decryptions) -> bool:
    try:
        decryptions.check()
    except DecryptionError as error:
        assert "SPOTCONN_ENCRYPTION_KEYS" in str(error)  # noqa: PT017  whether there is one is the result
        return True
    return False


def test_one_user_is_no_evidence() -> None:
    """Who may write the own row can put anything there, any number of times."""
    decryptions = Decryptions()
    for _ in range(100):
        decryptions.fail(USERS[0])
    assert decryptions
    assert not fails(decryptions)


def test_the_keys_are_wrong_while_most_users_fail() -> None:
    """Two of two, three of five; not two of five, and each user counts once, by the last outcome."""
    decryptions = Decryptions()
    for user in USERS[:2]:
        decryptions.fail(user)
    assert fails(decryptions)
    for _ in range(2):
        for user in USERS[2:4]:
            decryptions.succeed(user)
    assert not fails(decryptions)
    decryptions.fail(USERS[5])
    assert fails(decryptions)
    decryptions.succeed(USERS[0])
    assert not fails(decryptions)
    for user in USERS:
        decryptions.succeed(user)
    assert not decryptions


def test_a_failure_counts_for_five_minutes() -> None:
    """A process that gets no calls because it is not ready reads nothing that could show otherwise."""
    clock = FakeClock(0.0)
    decryptions = Decryptions(clock)
    for user in USERS[:2]:
        decryptions.fail(user)
    clock.step(299)
    assert fails(decryptions)
    clock.step(2)
    assert not fails(decryptions)
    decryptions.fail(USERS[0])
    assert fails(decryptions)


def test_users_are_remembered_in_bounded_number() -> None:
    """A table of a million damaged rows fills no memory."""
    decryptions = Decryptions()
    for number in range(MOST_USERS + 10):
        decryptions.fail(UUID(int=number))
        decryptions.succeed(UUID(int=number + 10_000))
    assert len(decryptions._failed) == len(decryptions._succeeded) == MOST_USERS


@pytest.mark.parametrize("failed", [0, 1])
def test_no_or_one_failure_passes(failed: int) -> None:
    """As at the start."""
    decryptions = Decryptions()
    for user in USERS[:failed]:
        decryptions.fail(user)
    decryptions.check()
