"""What docs/keys.md tells whoever lets clients in."""

from collections.abc import Callable

from tests.docs.walking import DOCS, Walk


def test_every_block_of_the_page_does_what_it_shows(make_walk: Callable[..., Walk]) -> None:
    make_walk(8000).run((DOCS / "keys.md").read_text())
