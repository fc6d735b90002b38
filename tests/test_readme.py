"""The README keeps its promises: its table is the committed one, and its example runs."""

from __future__ import annotations

import re

import pytest

from helpers.methods import METHODS
from helpers.paths import reference_dir, root


def readme() -> str:
    return (root() / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", ["perplexity", "cost"])
def test_the_tables_are_those_of_the_committed_records(table: str) -> None:
    committed = reference_dir("full") / "tables" / f"{table}.md"
    rows = [line for line in committed.read_text(encoding="utf-8").splitlines() if "|" in line]
    assert len(rows) > 5
    assert "\n".join(rows) in readme()


def test_the_verdicts_are_those_of_the_committed_records() -> None:
    claims = (reference_dir("full") / "tables" / "claims.md").read_text(encoding="utf-8")
    wanted: dict[str, list[str]] = {}
    for sentence, verdict in re.findall(
        r"^\| \d+ \| (.+?) \| \*\*(.+?)\*\* \|", claims, re.MULTILINE
    ):
        wanted.setdefault(verdict, []).append(sentence)
    text = re.sub(r"\n  (?=\S)", " ", readme())  # a bullet in one line
    said = re.findall(r"^- \*\*(.+?)\*\* \((\d+)\): (.+)$", text, re.MULTILINE)
    assert {verdict: (int(count), words) for verdict, count, words in said} == {
        verdict: (len(sentences), " ".join(sentences)) for verdict, sentences in wanted.items()
    }


def test_the_linked_files_are_there() -> None:
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", readme())
    assert len(links) >= 3
    assert [link for link in links if not (root() / link).exists()] == []


def test_it_fits_one_screen() -> None:
    assert len(readme().splitlines()) < 100


def test_the_example_runs(capsys: pytest.CaptureFixture) -> None:
    # the same lines on the tiny model: a name that moved, or a changed signature, breaks this
    (code,) = re.findall(r"```python\n(.*?)```", readme(), re.DOTALL)
    before = dict(METHODS)
    try:
        exec(code.replace('load_model("embedded")', 'load_model("tiny")'), {"__name__": "readme"})
        assert "wanda-refit" in METHODS
    finally:
        METHODS.clear()
        METHODS.update(before)
    assert 0 < float(capsys.readouterr().out) < 1
