"""Look at every link of a built site: python .ci/check_links.py build/docs.

A link within the site must lead to a file and, if it has one, an anchor there. Pages must load nothing from
elsewhere: no script, style, font or picture. Links to other sites are counted, and not followed, because
there may be no network.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADING = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "srcset")}
FOLLOWED = {("a", "href"), *LOADING}


class Page(HTMLParser):
    """The anchors and links of a page; links as (tag, attribute, target)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[tuple[str, str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for each tag."""
        values = {name: value for name, value in attrs if value is not None}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.links += [(tag, name, values[name]) for name in values if (tag, name) in FOLLOWED]


def faults(root: Path, outside: Counter[str]) -> Iterator[str]:
    """What is wrong, in a line each; counts the links to other sites by their hosts."""
    templates = root / "_static"
    pages = {path: Page(path) for path in sorted(root.rglob("*.html")) if templates not in path.parents}
    for path, page in pages.items():
        for tag, attribute, link in page.links:
            place = f"{path.relative_to(root)}: <{tag} {attribute}={link!r}>"
            parts = urlsplit(link)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                if (tag, attribute) in LOADING:
                    yield f"{place} is loaded from elsewhere"
                outside[parts.netloc] += 1
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                yield f"{place} leads to no file"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{place} leads to no anchor"
    for path in sorted(root.rglob("*.css")):
        for found in re.findall(
            r"(?:url\(|@import\s+)['\"]?((?:https?:)?//[^'\")]+)", path.read_text(encoding="utf-8")
        ):
            yield f"{path.relative_to(root)}: {found} is loaded from elsewhere"
    if not pages:
        yield f"{root}: no pages"


def main() -> int:
    """Print what is wrong and what was not looked at."""
    outside: Counter[str] = Counter()
    root = Path(sys.argv[1]).resolve()
    found = list(faults(root, outside))
    print(*found, sep="\n", end="\n" if found else "")
    hosts = ", ".join(f"{host} ({count})" for host, count in outside.most_common())
    print(f"{len(found)} broken links; not followed, because there may be no network: {hosts}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
