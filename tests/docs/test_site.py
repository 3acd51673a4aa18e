"""The checks that `make docs` makes of the built site find what is wrong with one."""

import json

import pytest

import built_site
import pages


@pytest.fixture
def site(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">b</a> <a href="#top">up</a><p id="top">'
    )
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1> <a href="https://example.org/x">x</a>')
    index = {
        "docnames": ["a", "b"],
        "terms": {"guidanc": 0, "own": [0, 1]},
        "titleterms": {"schedul": 1},
    }
    (tmp_path / "searchindex.js").write_text(f"Search.setIndex({json.dumps(index)})")
    return tmp_path


def test_a_site_without_faults_has_none(site):
    assert built_site.dead_links(site) == []


@pytest.mark.parametrize("link", ["c.html", "b.html#there", "#bottom", "picture.png"])
def test_a_dead_link_is_found(site, link):
    (site / "d.html").write_text(f'<a href="{link}">link</a>')
    assert built_site.dead_links(site) == [f"d.html: {link}"]


def test_the_search_wants_every_word(site):
    assert built_site.search(site, "Guidance") == {"a"}
    assert built_site.search(site, "own schedules") == {"b"}
    assert built_site.search(site, "guidance of schedules") == set()


def test_what_is_looked_for_has_a_page():
    for page in built_site.LOOKED_FOR.values():
        assert (pages.ROOT / f"docs/{page}.md").exists()
