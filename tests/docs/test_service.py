"""What docs/service.md tells whoever runs the service."""

from collections.abc import Callable

from tests.docs.walking import DOCS, Walk


def test_every_block_of_the_operators_page_does_what_it_shows(make_walk: Callable[..., Walk]) -> None:
    make_walk(8000, 8001, 8002).run((DOCS / "service.md").read_text())
