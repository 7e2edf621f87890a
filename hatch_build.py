"""What the metadata says beside pyproject.toml: the README as a package index shows it, and where the site is.

An index shows the README alone, so a link to a file beside it leads nowhere. Where `SPOTCONN_SITE_URL` names the
address of the documentation site, which `make docs` builds, links lead to its pages. Elsewhere they become plain text.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

SETTING = "SPOTCONN_SITE_URL"

RELATIVE = re.compile(r"(!?\[([^\[\]]+)\]\()(?!https?:|#)([^()\s]+)\)")
"""A link or a picture of Markdown whose target is a file of the repository: its beginning, its text and the target."""


class ReadmeHook(MetadataHookInterface):
    """Set the dynamic fields of the metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the README and the addresses.

        Raises:
            ValueError: the setting is no https address of a folder.
        """
        site = os.environ.get(SETTING, "")
        if site and not re.fullmatch(r"https://[^\s?#]+/", site):
            raise ValueError(f"{SETTING}: an address that begins with https:// and ends with a slash is needed")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": index_readme(text, site)}
        metadata["urls"] = {"Documentation": site, "Changelog": f"{site}changelog/"} if site else {}


def index_readme(text: str, site: str) -> str:
    """Return the README with links to the pages of the site, or with plain text in place of links if there is none."""
    return RELATIVE.sub(lambda link: f"{link[1]}{site}{_page(link[3])})" if site else link[2], text)


def _page(target: str) -> str:
    path, mark, place = target.partition("#")
    # The site has what is at the root of the repository by its name in lower case.
    path = path.removeprefix("docs/") if path.startswith("docs/") else path.lower()
    page = path.removesuffix("index.md")
    return (f"{page.removesuffix('.md')}/" if page.endswith(".md") else page) + mark + place
