"""The README as a package index shows it: `hatch_build.py`, with and without the address of the site."""

from pathlib import Path
from typing import Any

import pytest

from hatch_build import SETTING, ReadmeHook

ROOT = Path(__file__).parents[2]


def _metadata() -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    ReadmeHook(str(ROOT), {}).update(metadata)
    return metadata


def test_without_the_address_an_index_shows_no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of a link stay, and the metadata has no addresses."""
    monkeypatch.delenv(SETTING, raising=False)
    metadata = _metadata()
    assert "](" not in metadata["readme"]["text"]
    assert "The tutorial takes a quarter of an hour" in metadata["readme"]["text"]
    assert metadata["urls"] == {}


@pytest.mark.parametrize("wrong", ["site.example/", "http://site.example/", "https://site.example", "https://a/?b/"])
def test_an_address_that_pages_cannot_be_added_to_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build fails and names the setting."""
    monkeypatch.setenv(SETTING, wrong)
    with pytest.raises(ValueError, match=r"^SPOTCONN_SITE_URL: an address that begins with https:// and ends"):
        _metadata()
