"""The README keeps its promises: its tables are the committed ones, its example runs."""

import re
import subprocess

import processors

from helpers.paths import reference_dir, root
from reproduction.claims import judge_claims
from reproduction.claims_page import count_sentence, main_number
from reproduction.records import read_record, read_records
from reproduction.tables import paired_differences

README = (root() / "README.md").read_text("utf-8")
FLAT = README.replace("\n", " ")


def committed(table, plan="full"):
    return (reference_dir(plan) / "tables" / f"{table}.md").read_text("utf-8")


TIMES = "60 %, seconds / ADMM-Grad's"
TABLE = re.compile(r"(?m)(?:^\|.*\n)+")


def cells_of(table):
    """A table in Markdown: row → column → cell."""
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.split("\n")
                      if line)  # fmt: skip
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_the_table_is_that_of_the_committed_records():
    for plan in ("full", "second"):
        found = TABLE.findall(committed("perplexity", plan))
        assert len(found[0].splitlines()) > 5
        assert found[0] in README
    # on the one seed of the others
    for method in ("ADMM1", "ADMM-Grad"):
        name = f"04_prune_model--{method.lower()}-2of4"
        run = read_record(reference_dir("full") / f"records/{name}.json")
        assert f"{method} {run['metrics']['perplexity']['value']:.2f}" in FLAT


def test_the_rows_of_the_recipe_are_those_of_its_tables():
    recipe = ", guide, one pass{} + distil (64)"
    steps = ["", ", guide (2), one pass", *map(recipe.format, ("", ", bfloat16", ""))]
    shown = cells_of(TABLE.findall(README)[2]).items()
    for (row, cells), step in zip(shown, steps, strict=True):
        plan = "second" if "Gemma" in row else "beyond"
        name = f"ADMM-Grad{step}"
        perplexities, _, costs = map(
            cells_of, TABLE.findall(committed("beyond", plan))[:3]
        )
        wanted = {"steps": cells["steps"], "perplexity": perplexities[name]["60 %"]}
        for number in ("closed (%)", "seconds", "memory (GB)"):
            wanted[number] = costs[name][f"60 %, {number}"]
        assert cells == wanted
    # of Gemma, whose runs were not alone
    assert f"({costs[name][TIMES]} times ADMM-Grad's seconds)" in README
    assert f"{costs[name]['50 %, closed (%)']} % is closed" in README


def test_the_answers_of_the_recipe_are_those_of_the_records():
    records = read_records(reference_dir("full") / "records")
    records += read_records(reference_dir("beyond") / "records")
    tasks = paired_differences(records).set_index("task")
    tasks = tasks[tasks["pair"] == "admm-grad + recipe, 50 % − admm-grad, 50 %"]
    assert tasks.index.is_unique  # one seed
    error = (tasks["error"] ** 2).sum() ** 0.5 / len(tasks)
    texts = [f"{tasks['difference'].mean():+.3f} ± {2 * error:.3f}"]
    row = tasks.loc["LAMBADA (no breaks)"]
    texts += [f"{row['difference']:+.3f} ± {2 * row['error']:.3f}".replace("-", "−")]
    answers = cells_of(TABLE.findall(committed("zero_shot", "beyond"))[0])
    right, _ = answers["ADMM-Grad + recipe, 50 %"]["mean"].split(" ± ")
    assert (
        f"at 50 % the recipe's accuracy is {right}, against ADMM-Grad {texts[0]} (two standard "
        f"errors over items); on LAMBADA (no breaks), {texts[1]}: both undecided with one seed"
        in FLAT
    )


def test_what_another_processor_does_is_what_pairs_of_runs_have_shown():
    pairs = processors.known()["pairs"]
    runs = [pair["metrics"].get("perplexity", [1, 1]) for pair in pairs]
    most = 100 * max(max(both) / min(both) - 1 for both in runs)
    assert f"by up to {most:.0f} % ({len(pairs)} pairs, none at 80 %)." in FLAT
    assert all(pair["parameters"].get("sparsity") != 0.8 for pair in pairs)


def test_its_number_of_families_is_that_of_their_page():
    (families,) = re.findall(r"\[(\d+) families", README)
    assert f"## Pruned: {families} families" in (
        root() / "results/families.md"
    ).read_text("utf-8")


def test_the_claims_are_those_of_the_committed_records():
    verdicts, rows = judge_claims(read_records(reference_dir("full") / "records"))
    lines = set()
    for row in verdicts.itertuples():
        number = main_number(row, rows[rows["number"] == row.number])
        lines.add(f"- **{row.verdict}**: {row.sentence.rstrip('.')} ({number}).")
    shown = re.findall(r"(?m)^- (?:.+\(.+\)\.)$", README)
    assert len(shown) == 4
    assert set(shown) < lines
    assert count_sentence(verdicts) in FLAT


EARLIER = r"\d+ of \d+ records of \w+ are of earlier code"


def test_it_says_how_many_records_of_its_tables_are_of_earlier_code():
    """As `make accept` has counted them, and nothing where there are none."""
    plans = dict.fromkeys(re.findall(r"results/reference/(\w+)/tables", README))
    notes = [reference_dir(plan) / "earlier.txt" for plan in plans]
    said = re.findall(EARLIER, README)
    assert said == [
        note.read_text().splitlines()[0] for note in notes if note.is_file()
    ]


def test_links_of_every_page_lead_to_files():
    listed = ["git", "ls-files", "-z", "*.md"]
    names = subprocess.check_output(listed, cwd=root(), text=True)
    dead = []
    for page in filter(None, names.split("\0")):
        folder = root() if page.startswith("book/") else (root() / page).parent
        text = (root() / page).read_text("utf-8")
        for link in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text):
            # a page of the book stands in the root once the book is made
            if not ((folder / link).exists() or (root() / "book" / link).exists()):
                dead.append((page, link))
    assert dead == []
    assert "README.md" in names


def test_the_example_runs(capsys, monkeypatch, tmp_path):
    # the same lines on the tiny model: a name that moved, or a changed signature, breaks this
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    code = example.replace('load_model("embedded"', 'load_model("tiny"')
    exec(code.replace("sequences=32", "sequences=2"), {"__name__": "readme"})
    assert float(capsys.readouterr().out) > 1
    assert (tmp_path / "my-pruned-model").is_dir()
