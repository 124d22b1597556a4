"""What docs/inference-protocol.md tells whoever brings a client of the Open Inference Protocol."""

from collections.abc import Callable

from service.runtime.inference import DEBIASED, MAX_FILES, RAW, SCORES
from tests.docs.walking import DOCS, Walk

DOCUMENT = (DOCS / "inference-protocol.md").read_text()


def test_every_block_of_the_page_does_what_it_shows(make_walk: Callable[..., Walk]) -> None:
    make_walk(8000).run(DOCUMENT)


def test_its_tables_name_every_output_and_the_bound_on_files() -> None:
    assert all(f"\n| `{name}` |" in DOCUMENT for name in (SCORES, RAW, DEBIASED))
    assert f"N at most {MAX_FILES} " in DOCUMENT
