"""The README keeps its promises: its tables are the committed ones, its example runs."""

import re
import subprocess

import pytest

from helpers.beyond import recipe
from helpers.methods import METHODS
from helpers.paths import reference_dir, root

README = (root() / "README.md").read_text(encoding="utf-8")


def committed(table: str) -> str:
    return (reference_dir("full") / "tables" / f"{table}.md").read_text(encoding="utf-8")


TABLE = re.compile(r"(?m)(?:^\|.*\n)+")


def cells_of(table: str) -> dict[str, dict[str, str]]:
    """A table in Markdown: row → column → cell."""
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.split("\n")
                      if line)  # fmt: skip
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_the_table_is_that_of_the_committed_records() -> None:
    found = TABLE.findall(committed("perplexity"))
    assert len(found[0].splitlines()) > 5 and found[0] in README


def test_the_rows_of_the_recipe_are_those_of_its_table() -> None:
    (shown,) = [table for table in TABLE.findall(README) if table.startswith("| pipeline ")]
    every = cells_of(TABLE.findall(committed("beyond"))[2])
    rows = cells_of(shown)
    assert len(rows) > 4
    for row, cells in rows.items():
        assert cells == {column: every[row][column] for column in cells}, row


def test_the_numbers_of_the_recipe_are_those_of_its_table() -> None:
    first = committed("beyond").split("\nModel: ")[0]  # perplexity on Wikipedia
    rows = cells_of(TABLE.findall(first)[0])
    found = {
        row: float(cells["60 %"].split()[0]) for row, cells in rows.items() if cells["60 %"] != "–"
    }
    steps = ("", ", guide, one pass + distil (64)", ", guide (2), one pass")
    before, after, fast = (f"{found[f'ADMM-Grad{step}']:.1f}" for step in steps)
    assert f"falls from {before} to {after}, and to {fast} with" in README.replace("\n", " ")


def test_the_numbers_of_the_other_architecture_are_those_of_its_benchmark() -> None:
    page = (reference_dir("bench") / "bench.md").read_text(encoding="utf-8")
    every = TABLE.findall(page.split("\n## architecture\n")[1])[:3]  # 60, 70 and 80 %
    found = [cells_of(table)["ADMM-Grad, balanced"]["wiki, closed (%)"] for table in every]
    closed = "{:.0f}, {:.0f} and {:.0f} %".format(*map(float, found))
    assert f"the recipe closes {closed} at 60, 70 and 80 %." in README.replace("\n", " ")


def test_its_number_of_families_is_that_of_their_page() -> None:
    (families,) = re.findall(r"\[(\d+) families", README)
    page = (root() / "results" / "families.md").read_text(encoding="utf-8")
    assert f"## Pruned: {families} families" in page


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


def test_links_of_every_page_lead_to_files() -> None:
    listed = ["git", "ls-files", "-z", "*.md"]
    names = subprocess.run(listed, cwd=root(), capture_output=True, text=True, check=True).stdout
    dead = []
    for page in filter(None, names.split("\0")):
        folder = root() if page.startswith("book/") else (root() / page).parent
        text = (root() / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text):
            # a page of the book stands in the root once the book is made
            if not ((folder / link).exists() or (root() / "book" / link).exists()):
                dead.append((page, link))
    assert dead == [] and "README.md" in names


@pytest.mark.usefixtures("registry")
def test_the_examples_run(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    # the same lines on the tiny model: a name that moved, or a changed signature, breaks this
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.setattr(recipe, "EFFORTS", {"balanced": recipe.Effort(1, 2)})
    for code in examples:
        exec(code.replace('load_model("embedded"', 'load_model("tiny"'), {"__name__": "readme"})
    assert len(examples) == 2 and "wanda-refit" in METHODS
    assert 0 < float(capsys.readouterr().out) < 1
