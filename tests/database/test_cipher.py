"""Encryption at rest: the published answers, our own format for ever, and 10,000 ways to damage a value."""

import copy
import json
import pickle
import random
import string
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from spotconn import AesGcmSivCipher, ConfigurationError, DecryptionError
from spotconn.cipher import NoCipher, TokenColumn, cipher_for

GOLDEN = Path(__file__).with_name("golden_tokens.json")
COLUMNS: tuple[TokenColumn, TokenColumn] = ("access_token", "refresh_token")
ALICE, BOB = UUID(int=1), UUID(int=2)
FIRST, SECOND, UNKNOWN = (AesGcmSivCipher.generate_key() for _ in range(3))

KEY, NONCE = "01" + "00" * 31, "03" + "00" * 11
RFC_8452_C2 = [
    (KEY, NONCE, "", "", "07f5f4169bbf55a8400cd47ea6fd400f"),
    (KEY, NONCE, "0100000000000000", "", "c2ef328e5c71c83b843122130f7364b761e0b97427e3df28"),
    (KEY, NONCE, "01" + "00" * 11, "", "9aab2aeb3faa0a34aea8e2b18ca50da9ae6559e48fd10f6e5c9ca17e"),
    (KEY, NONCE, "01" + "00" * 15, "", "85a01b63025ba19b7fd3ddfc033b3e76c9eac6fa700942702e90862383c6c366"),
    (
        KEY,
        NONCE,
        "01" + "00" * 15 + "02" + "00" * 15,
        "",
        "4a6a9db4c8c6549201b9edb53006cba821ec9cf850948a7c86c68ac7539d027fe819e63abcd020b006a976397632eb5d",
    ),
    (KEY, NONCE, "0200000000000000", "01", "1de22967237a813291213f267e3b452f02d01ae33e4ec854"),
    (KEY, NONCE, "02" + "00" * 11, "01", "163d6f9cc1b346cd453a2e4cc1a4a19ae800941ccdc57cc8413c277f"),
    (KEY, NONCE, "02" + "00" * 15, "01", "c91545823cc24f17dbb0e9e807d5ec17b292d28ff61189e8e49f3875ef91aff7"),
    (
        "e66021d5eb8e4f4066d4adb9c33560e4f46e44bb3da0015c94f7088736864200",
        "e0eaf5284d884a0e77d31646",
        "",
        "",
        "169fbb2fbf389a995f6390af22228a62",
    ),
]


@pytest.mark.parametrize(("key", "nonce", "plaintext", "associated", "result"), RFC_8452_C2)
def test_the_library_gives_the_published_answers(
    key: str, nonce: str, plaintext: str, associated: str, result: str
) -> None:
    """RFC 8452, appendix C.2, there and back."""
    cipher = AESGCMSIV(bytes.fromhex(key))
    given = bytes.fromhex(nonce), bytes.fromhex(plaintext), bytes.fromhex(associated)
    assert cipher.encrypt(*given).hex() == result
    assert cipher.decrypt(given[0], bytes.fromhex(result), given[2]) == given[1]


def test_what_was_ever_written_is_read() -> None:
    """Every value of the golden file decrypts to its token; the file only ever grows."""
    golden = json.loads(GOLDEN.read_text())
    cipher = AesGcmSivCipher(golden["keys"], require_encrypted=True)
    assert list(cipher.key_ids) == golden["key_ids"]
    assert len(golden["values"]) >= 6
    for value in golden["values"]:
        token = cipher.decrypt(value["stored"], user_id=UUID(value["user_id"]), column=value["column"])
        assert token == value["token"]


@pytest.mark.parametrize("token", ["", "x", "BQ" + "aZ09-_" * 30, "a" * 5000, "é"])
@pytest.mark.parametrize("column", COLUMNS)
def test_what_is_encrypted_is_decrypted(token: str, column: TokenColumn) -> None:
    """There and back, in the written form, and never twice the same."""
    cipher = AesGcmSivCipher([FIRST])
    stored = cipher.encrypt(token, user_id=ALICE, column=column)
    assert stored.startswith(cipher.current_prefix)
    assert cipher.current_prefix == f"spotconn1.{cipher.key_ids[0]}."
    assert stored.isascii()
    assert len(token) < 9 or token not in stored
    assert cipher.decrypt(stored, user_id=ALICE, column=column) == token
    assert cipher.encrypt(token, user_id=ALICE, column=column) != stored


def test_the_first_key_encrypts_and_all_decrypt() -> None:
    """A ring reads what each of its keys wrote, and a ring without the key says which one is missing."""
    old, new, ring = AesGcmSivCipher([FIRST]), AesGcmSivCipher([SECOND]), AesGcmSivCipher([SECOND, FIRST])
    by_old, by_new, stored = (c.encrypt("token", user_id=ALICE, column="access_token") for c in (old, new, ring))
    for each in (by_old, by_new, stored):
        assert ring.decrypt(each, user_id=ALICE, column="access_token") == "token"
    assert new.decrypt(stored, user_id=ALICE, column="access_token") == "token"
    with pytest.raises(DecryptionError, match=f"with key {ring.key_ids[0]}, which is not in the ring"):
        old.decrypt(stored, user_id=ALICE, column="access_token")


def test_plain_text_from_before_is_read_unless_refused() -> None:
    """What has no prefix is a token from before encryption."""
    assert AesGcmSivCipher([FIRST]).decrypt("BQplain", user_id=ALICE, column="access_token") == "BQplain"
    with pytest.raises(DecryptionError, match="not encrypted"):
        AesGcmSivCipher([FIRST], require_encrypted=True).decrypt("BQplain", user_id=ALICE, column="access_token")


def test_without_a_cipher_nothing_encrypted_is_taken_for_a_token() -> None:
    """A process that lacks the keys refuses an encrypted value, or it would send it to Spotify."""
    stored = AesGcmSivCipher([FIRST]).encrypt("token", user_id=ALICE, column="access_token")
    plain = NoCipher()
    assert plain.decrypt(plain.encrypt("BQ", user_id=ALICE, column="access_token"), user_id=BOB, column="refresh_token")
    with pytest.raises(DecryptionError, match="SPOTCONN_ENCRYPTION_KEYS"):
        plain.decrypt(stored, user_id=ALICE, column="access_token")


def mutated(stored: str, kind: str, dice: random.Random) -> str:
    if kind == "bit":
        raw = bytearray(stored.encode())
        raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
        return raw.decode("latin-1")
    if kind == "truncated":
        return stored[: dice.randrange(len(stored))]
    if kind == "cut in front":
        return stored[dice.randrange(1, len(stored)) :]
    if kind == "longer":
        return stored + dice.choice("Ab-_=.\n é")
    if kind == "other letter":
        place = dice.randrange(len(stored))
        return stored[:place] + dice.choice("".join(set("AQaq09-_.= \0") - {stored[place]})) + stored[place + 1 :]
    version, _, data = stored.split(".")
    return f"{version}.{AesGcmSivCipher([UNKNOWN]).key_ids[0]}.{data}"


KINDS = ("bit", "truncated", "cut in front", "longer", "other letter", "unknown key", "other row", "other column")


def test_every_damaged_value_is_a_decryption_error() -> None:
    """10,000 mutations; each is a DecryptionError that repeats nothing of the value, and no other exception."""
    dice = random.Random(20261124)
    cipher = AesGcmSivCipher([FIRST, SECOND], require_encrypted=True)
    lenient = AesGcmSivCipher([FIRST, SECOND])
    counts: Counter[str] = Counter()
    for number in range(10_000):
        kind = KINDS[number % len(KINDS)]
        column = dice.choice(COLUMNS)
        token = "BQ" + "x" * dice.randrange(1, 60)
        stored = AesGcmSivCipher([dice.choice((FIRST, SECOND))]).encrypt(token, user_id=ALICE, column=column)
        user, read = ALICE, column
        if kind == "other row":
            user = UUID(int=dice.randrange(2, 1 << 128))
        elif kind == "other column":
            read = COLUMNS[1 - COLUMNS.index(column)]
        else:
            stored = mutated(stored, kind, dice)
        ciphers = [cipher, lenient] if stored.startswith("spotconn") else [cipher]
        for each in ciphers:
            with pytest.raises(DecryptionError) as raised:
                each.decrypt(stored, user_id=user, column=read)
            assert raised.value.__cause__ is None
            assert raised.value.__context__ is None
            assert token not in str(raised.value)
        counts[kind] += 1
    assert counts == dict.fromkeys(KINDS, 1250)


# Every letter of base64 and base64url, everything that a lenient decoder skips, and what only looks like a letter.
LETTERS = [*map(chr, range(256)), "\N{FULLWIDTH LATIN CAPITAL LETTER A}", "\N{ARABIC-INDIC DIGIT THREE}", "\ud800"]


@pytest.mark.parametrize("token", ["x", "xx", "xxx"], ids=["two left", "none left", "one left"])
def test_a_value_has_one_way_of_being_written(token: str) -> None:
    """With any letter changed, added or left out it is refused, however many bytes are left after the last three."""
    cipher = AesGcmSivCipher([FIRST], require_encrypted=True)
    stored = ""
    while not {"-", "_"} < set(stored):  # base64 writes these two otherwise
        stored = cipher.encrypt(token, user_id=ALICE, column="access_token")
    places = range(len(stored) + 1)
    changed = {stored[:place] + letter + stored[place + 1 :] for place in places for letter in ["", *LETTERS]}
    # Four of them leave the number of letters after the last four as it was.
    longer = {stored[:place] + n * letter + stored[place:] for place in places for letter in LETTERS for n in (1, 4)}
    read = list[str]()
    for other in (changed | longer) - {stored}:
        with suppress(DecryptionError):
            cipher.decrypt(other, user_id=ALICE, column="access_token")
            read.append(other)
    assert not read
    assert cipher.decrypt(stored, user_id=ALICE, column="access_token") == token


def test_a_key_has_one_way_of_being_written() -> None:
    """Of the last letters, which say only four bits, one in four is taken, and each makes another key."""
    ids = set[str]()
    for last in string.ascii_letters + string.digits + "-_":
        with suppress(ConfigurationError):
            ids.update(AesGcmSivCipher([FIRST[:42] + last]).key_ids)
    assert len(ids) == 16


DAMAGED = (
    "the stored access_token is damaged, or of a later version of spotconn: upgrade, or have the user connect again"
)
ALTERED = "the stored access_token was altered, or is that of another user or column: spotconn doctor says what to do"
ABSENT = (
    "the stored access_token is encrypted with key 01234567, which is not in the ring: put that key behind the others "
    "in SPOTCONN_ENCRYPTION_KEYS"
)


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        ("spotconn", DAMAGED),
        ("spotconn1.KNOWN", DAMAGED),
        ("spotconn1.KNOWN.", DAMAGED),
        ("spotconn2.KNOWN.AAAA", DAMAGED),
        ("spotconn1.0123456F.AAAA", DAMAGED),
        ("spotconn1.KNOWN.AAAA.AAAA", DAMAGED),
        ("spotconn1.KNOWN.AAA=", DAMAGED),
        ("spotconn1.KNOWN.AA+/", DAMAGED),
        ("spotconn1.01234567.AA A", DAMAGED),
        ("spotconn1.01234567.AAAA", ABSENT),
        ("spotconn1.KNOWN.A", ALTERED),
        ("spotconn1.KNOWN.AAAA", ALTERED),
        ("spotconn1.KNOWN.AAB", ALTERED),
        ("spotconn1.KNOWN." + 10 * "AAAA", ALTERED),
    ],
)
def test_an_error_says_what_is_wrong_with_a_value(stored: str, text: str) -> None:
    """The form is looked at first, then the key, then whether the value is authentic."""
    cipher = AesGcmSivCipher([FIRST])
    with pytest.raises(DecryptionError) as raised:
        cipher.decrypt(stored.replace("KNOWN", cipher.key_ids[0]), user_id=ALICE, column="access_token")
    assert str(raised.value) == text
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    "keys",
    [[], [""], ["marked"], [FIRST[:-2]], [FIRST + "A"], [FIRST, FIRST], [FIRST, FIRST.rstrip("=")], ["/" + FIRST[1:]]],
)
def test_a_malformed_ring_is_refused(keys: list[str]) -> None:
    """No key, a malformed one and one that is there twice; the text holds none of them."""
    with pytest.raises(ConfigurationError, match="key") as raised:
        AesGcmSivCipher(keys)
    assert not any(key and key in str(raised.value) for key in keys)
    assert raised.value.__context__ is None


def test_an_empty_setting_means_no_cipher() -> None:
    """Only a ring with keys makes a cipher."""
    assert cipher_for([], require_encrypted=False) is None
    assert isinstance(cipher_for([FIRST], require_encrypted=True), AesGcmSivCipher)


def test_a_cipher_does_not_give_its_keys_away() -> None:
    """Neither its repr nor a pickle or copy holds a key."""
    cipher = AesGcmSivCipher([FIRST, SECOND])
    assert repr(cipher) == f"<AesGcmSivCipher keys={', '.join(cipher.key_ids)}>"
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds keys"):
            attempt(cipher)


def test_without_the_extra_the_package_imports_and_says_what_to_install() -> None:
    """`import spotconn` works without `cryptography`; only making a cipher asks for it."""
    code = (
        "import sys; sys.modules['cryptography.exceptions'] = None\n"
        "import spotconn\n"
        "try: spotconn.AesGcmSivCipher([spotconn.AesGcmSivCipher.generate_key()])\n"
        "except spotconn.ConfigurationError as error: print(error, error.__context__)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'encryption needs an extra: pip install "spotconn[crypto]" None\n'
