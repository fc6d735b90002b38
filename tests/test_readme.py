"""The README keeps its promises: its tables are the committed ones, and its example runs."""

import re

import pytest

from helpers.methods import METHODS
from helpers.paths import reference_dir, root

README = (root() / "README.md").read_text(encoding="utf-8")


def committed(table: str) -> str:
    return (reference_dir("full") / "tables" / f"{table}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", ["perplexity", "cost"])
def test_the_tables_are_those_of_the_committed_records(table: str) -> None:
    rows = [line for line in committed(table).splitlines() if "|" in line]
    assert len(rows) > 5 and "\n".join(rows) in README


def test_the_verdicts_are_those_of_the_committed_records() -> None:
    wanted: dict[str, list[str]] = {}
    for sentence, verdict in re.findall(
        r"(?m)^\| \d+ \| (.+?) \| \*\*(.+?)\*\* \|", committed("claims")
    ):
        wanted.setdefault(verdict, []).append(sentence)
    text = re.sub(r"\n  (?=\S)", " ", README)  # a bullet in one line
    said = re.findall(r"(?m)^- \*\*(.+?)\*\* \((\d+)\): (.+)$", text)
    assert {verdict: (int(count), words) for verdict, count, words in said} == {
        verdict: (len(sentences), " ".join(sentences)) for verdict, sentences in wanted.items()
    }


def test_it_fits_one_screen_and_the_linked_files_are_there() -> None:
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert len(README.splitlines()) <= 110 and len(links) >= 3
    assert [link for link in links if not (root() / link).exists()] == []


@pytest.mark.usefixtures("registry")
def test_the_example_runs(capsys: pytest.CaptureFixture) -> None:
    # the same lines on the tiny model: a name that moved, or a changed signature, breaks this
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code.replace('load_model("embedded")', 'load_model("tiny")'), {"__name__": "readme"})
    assert "wanda-refit" in METHODS
    assert 0 < float(capsys.readouterr().out) < 1
