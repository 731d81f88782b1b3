"""The pages that users read: they agree with the connector, and use plain words."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts.docs_tables import PAGE, tables, write_tables
from scripts.inline_schemas import read_schemas

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = PAGE.read_text(encoding="utf-8")
SCHEMAS: dict[str, Any] = read_schemas()
# Words of this house that puzzle a reader, and what to say instead.
PLAIN = {
    r"mend(s|ed|ing)?": "fix, repair, correct",
    r"besides": "also, too",
    r"stands? beside|beside it": "is next to",
    r"its say": "the query also looks at",
    r"for who|[Ww]hoever": "if you, anyone who",
    r"[Ww]ho (waits|wants)": "waiting cohorts, users who want",
    r"goes? for": "applies to",
    r"anew": "again",
    r"dear(er|est)?": "expensive",
    r"among whom": "that included",
    r"whilst|amongst|hence|thereby|therein|whereby": "a shorter word",
}


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    return tables()


def prose(text: str) -> list[tuple[int, str]]:
    """The lines of a page, with their numbers, without code and the changelog."""
    head = text.partition("\n## Changelog")[0]
    blank = re.sub(r"```.*?```", lambda m: "\n" * m[0].count("\n"), head, flags=re.DOTALL)
    return [(n, re.sub(r"`[^`]*`", "", line)) for n, line in enumerate(blank.splitlines(), 1)]


def test_tables_of_the_page_are_those_of_the_connector(written: dict[str, str]) -> None:
    assert write_tables(DOCS, written) == DOCS, "run `make schemas`"


def test_given_a_page_without_marks_when_written_then_it_is_refused() -> None:
    with pytest.raises(ValueError, match="no marks of the table streams"):
        write_tables("# Amplitude\n", {"streams": ""})


def test_links_within_the_page_lead_somewhere() -> None:
    without_code = re.sub(r"```.*?```", "", DOCS, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)", without_code, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    anchors = slugs | set(re.findall(r'<a id="([^"]+)">', DOCS))
    assert set(re.findall(r"\]\(#([^)]+)\)", DOCS)) <= anchors
    assert len(anchors) > len(SCHEMAS)
    for link in re.findall(r"\]\((?!https|#)([^)#]+)", DOCS):
        assert (PAGE.parent / link).exists()


def test_columns_that_the_table_of_joins_names_are_there() -> None:
    table = DOCS.partition("### Keys and joins")[2].partition("\n\n- ")[0]
    named = re.findall(r"`?(\w+)\.(\w+)", table)
    assert len(named) > 30
    for stream, column in named:
        assert column in SCHEMAS[stream]["properties"], f"{stream}.{column}"


def test_messages_that_the_page_explains_are_those_of_the_connector() -> None:
    package = ROOT / "source_amplitude"
    texts = [(package / "manifest.yaml").read_text(encoding="utf-8")]
    for module in package.glob("*.py"):
        tree = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        texts += [str(node.value) for node in tree if isinstance(node, ast.Constant)]
    said = " ".join(" ".join(texts).split())
    explained = DOCS.partition("### Troubleshooting")[2].partition("**Numbers that look")[0]
    cells = re.findall(r"^\| (`.*?) \|", explained, re.MULTILINE)
    assert len(cells) > 15
    parts = re.findall(r"`([^`]+)`", " ".join(cells))
    assert [part for part in parts if part not in said] == []


def test_pages_and_descriptions_use_plain_words() -> None:
    lines = [
        (f"{page.name}:{number}", line)
        for page in (PAGE, README)
        for number, line in prose(page.read_text(encoding="utf-8"))
    ]
    lines.append(("schemas", json.dumps(SCHEMAS)))
    found = [
        f"{place}: {match[0]!r}: say {better!r}"
        for place, line in lines
        for word, better in PLAIN.items()
        for match in re.finditer(rf"\b({word})\b", line)
    ]
    assert not found, "\n".join(found)


def test_readme_counts_the_streams() -> None:
    fixed = [name for name in SCHEMAS if not name.startswith("report_")]
    assert f"There are {len(fixed)} streams" in README.read_text(encoding="utf-8")


def test_no_brace_of_the_page_is_taken_for_code() -> None:
    # Airbyte's site reads the page as MDX, where a brace begins an expression.
    assert [line for _, line in prose(DOCS) if "{" in line] == []
