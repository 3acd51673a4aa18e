"""Checks of the built documentation: `python tests/helpers/built_site.py build/docs`, which `make docs` runs.

That local links lead to a page and to a place on it, that pictures are there, and that the site's own
search finds what newcomers look for.
"""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import snowballstemmer
from sphinx.search.en import SearchEnglish

# What people type, and a page that must be among those that the search shows.
LOOKED_FOR = {
    "guidance": "guidance",
    "classifier free guidance": "api/guidance",
    "inpainting": "faq",
    "own schedule": "extending",
    "likelihood": "tutorials/likelihood",
    "two moons": "tutorials/moons",
    "k-diffusion": "migrate",
    "install": "index",
    "cite": "citation",
}


class Page(HTMLParser):
    """The links and the places of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and value and tag != "link":
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.places.add(value)


def dead_links(site: Path) -> list[str]:
    """Local links of the site's pages that lead nowhere."""
    # The exported explorer is one page of its own, with views behind its "#".
    names = [path for path in site.rglob("*.html") if path.name != "figures.html"]
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in names}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("data:"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            lost = place and target in pages and place not in pages[target].places
            if not target.exists() or lost:
                dead.append(f"{path.relative_to(site.resolve())}: {link}")
    return dead


def search(site: Path, query: str) -> set[str]:
    """The pages that have every word of a query, as the site's own search looks for them."""
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(re.fullmatch(r"Search\.setIndex\((.*)\);?\s*", text, flags=re.S)[1])
    stem = snowballstemmer.stemmer("english").stemWord
    found = []
    for word in set(re.findall(r"\w+", query.lower())) - SearchEnglish.stopwords:
        pages = set()
        for table in ("terms", "titleterms"):
            numbers = index[table].get(stem(word), [])
            pages |= set(numbers if isinstance(numbers, list) else [numbers])
        found.append({index["docnames"][number] for number in pages})
    return set.intersection(*found) if found else set()


def main(folder: str) -> int:
    """Print what is wrong; 1 if anything is."""
    site = Path(folder)
    wrong = dead_links(site)
    for query, page in LOOKED_FOR.items():
        if page not in (pages := search(site, query)):
            wrong.append(f"search for {query!r} finds {sorted(pages)}, not {page}")
    print("\n".join(wrong) or f"{folder}: every local link leads somewhere, and the search finds")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
