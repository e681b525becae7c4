"""What the pages show is run, in the order in which a reader would run it."""

from pathlib import Path

import pytest
from docs_support import ROOT, TIMEOUT_S, SnippetFailed, first_missing, pages, run_scenario, scenario

# Those of examples/ have tests beside the examples' own.
TOOLCHAINS = {"tutorial-go.md"}  # they need more than Python: run by `make examples`
WITH_SCENARIOS = [
    page for page in pages() if "examples" not in page.relative_to(ROOT).parts and page.name not in TOOLCHAINS and scenario(page)
]


@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize("page", WITH_SCENARIOS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_snippets_of_a_page_run_and_print_what_it_says(page: Path, tmp_path: Path, sec_addresses: tuple[str, ...]) -> None:
    run_scenario(page, tmp_path, sec_addresses)


def test_these_pages_have_snippets() -> None:
    shown = {str(page.relative_to(ROOT)) for page in WITH_SCENARIOS}
    assert {
        "README.md",
        "docs/action-servers.md",
        "docs/client.md",
        "docs/operations.md",
        "docs/stuck-sagas.md",
        "docs/testing.md",
    } <= shown


def test_a_snippet_that_fails_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash run\nfalse\n```\n")
    with pytest.raises(SnippetFailed, match="exit code 1"):
        run_scenario(page, tmp_path, ["127.0.0.1:1"])


def test_a_snippet_that_prints_something_else_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python file=word.py\nWORD = 'two'\n```\n```python run\nimport word; print(word.WORD)\n```\n```text output\none\n```\n"
    )
    with pytest.raises(SnippetFailed, match="'one' was not printed"):
        run_scenario(page, tmp_path, ["127.0.0.1:1"])


def test_a_mark_that_does_not_exist_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash runs\ntrue\n```\n")
    with pytest.raises(ValueError, match='cannot be marked "runs"'):
        scenario(page)


@pytest.mark.parametrize(
    ("expected", "printed", "missing"),
    [
        (["a", "c"], ["a", "b", "c"], None),
        (["c", "a"], ["a", "b", "c"], "a"),
        (["at … o'clock"], ["at 12 o'clock"], None),
        (["at … o'clock"], ["at 12 o'clock sharp"], "at … o'clock"),
        (["", "a"], ["a"], None),
        (["a"], [], "a"),
    ],
)
def test_output_is_compared_line_by_line_in_order(expected: list[str], printed: list[str], missing: str | None) -> None:
    assert first_missing(expected, printed) == missing
