"""What the builds of the package and of the site share: the project's URL, and links as the web needs them.

The URL is written in pyproject.toml alone.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def project_url() -> str:
    """The address of the repository."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        return str(tomllib.load(file)["project"]["urls"]["Repository"])


def replace_links(text: str, replacement: Callable[[str], str]) -> str:
    """Markdown with the target of each link that is no URL and no mere anchor replaced."""
    return re.sub(r"(?<=\]\()(?![a-z]+:|#)[^)\s]+", lambda found: replacement(found[0]), text)


def web_address(path: str) -> str:
    """Where the web shows a file of the repository: pictures as they are, all else as a page."""
    view = "raw" if path.endswith((".svg", ".png")) else "blob"
    return f"{project_url()}/{view}/main/{path}"


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, Any]:
    """Called by the build: the README as the description of the package, whose links are absolute."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return {"readme": {"content-type": "text/markdown", "text": replace_links(readme, web_address)}}
