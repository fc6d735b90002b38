"""README and the page of numbers: filled from the records, true of them, linked."""

import inspect
import json
import math
import re
import statistics
import subprocess
import unicodedata

import pytest

from helpers import METHODS, masks_of
from helpers.errors import RunError
from helpers.paths import reference_dir, root
from reproduction import pages
from reproduction.plan import read_plan

README = (root() / "README.md").read_text("utf-8")
NUMBERS = (root() / "docs/numbers.md").read_text("utf-8")
FLAT = re.sub(r"\s+", " ", README)
T = {
    3: 4.303,
    4: 3.182,
    5: 2.776,
    8: 2.365,
}  # Student's t at 97.5 %, by the number of draws


def test_the_pages_are_as_the_committed_records_fill_them():
    pytest.importorskip("cogapp", reason="of the developers' packages: make setup")
    assert pages.fill("--check", "--diff") == 0, "run make pages"


def test_a_number_by_hand_is_noticed_and_written_again(tmp_path, monkeypatch):
    pytest.importorskip("cogapp", reason="of the developers' packages: make setup")
    pages.processor_pairs()  # kept from here on
    page = tmp_path / "README.md"
    page.write_text(README.replace("| 18.83 |", "| 17.83 |"), "utf-8")
    monkeypatch.setattr(pages, "root", lambda: tmp_path)
    monkeypatch.setattr(pages, "PAGES", ("README.md",))
    assert pages.fill("--check") == 5
    assert pages.fill("-r") == 0
    assert page.read_text("utf-8") == README


def at_60(method):
    """Perplexity by draw, of the raw files."""
    files = (reference_dir("full") / "records").glob(f"04_prune_model--{method}-60*")
    runs = [json.loads(path.read_text("utf-8")) for path in files]
    return {
        run["parameters"]["calibration_seed"]: run["metrics"]["perplexity"]["value"]
        for run in runs
        if not run["parameters"]["options"]
    }


def half(values):
    return T[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


@pytest.mark.parametrize("name", ["Wanda", "SparseGPT", "ADMM1", "ADMM-Grad", "ALPS"])
def test_a_row_is_the_mean_of_its_records(name):
    (cell,) = re.findall(rf"(?m)^\| {name} \| [^|]+ \| (.+) \|$", README)
    draws = list(at_60(name.lower()).values())
    shown = [float(number) for number in cell.split(" ± ")]
    assert shown == pytest.approx([statistics.mean(draws), half(draws)], abs=0.051)


@pytest.mark.parametrize(
    ("rival", "sentence"),
    [
        ("sparsegpt", "At 60 % its perplexity is {} below SparseGPT's"),
        ("wanda", "and {} below Wanda's"),
        ("admm1", "{} below that of ADMM1"),
        ("alps", "at 60 % ADMM-Grad's perplexity is {} above that of ALPS"),
    ],
)
def test_a_finding_is_the_mean_over_pairs_of_draws(rival, sentence):
    ours, theirs = at_60("admm-grad"), at_60(rival)
    logs = [math.log(ours[draw] / theirs[draw]) for draw in theirs]
    ratio = math.exp(statistics.mean(logs))
    number = f"{100 * abs(ratio - 1):.0f} ± {100 * ratio * half(logs):.0f} %"
    assert sentence.format(number) in FLAT


def test_a_sentence_that_the_records_do_not_carry_is_not_written():
    with pytest.raises(RunError, match="write that sentence"):
        pages.apart("below", "alps")
    with pytest.raises(RunError, match="compared with"):
        pages.apart("below", "alps", "4:8")


def test_minutes_of_a_slow_laptop_are_twice_those_of_the_records():
    files = (reference_dir("laptop") / "records").glob("*.json")
    seconds = [json.loads(path.read_text("utf-8"))["run_seconds"] for path in files]
    (said,) = re.findall(r"make reproduce`.*\| (\d+) \|", README)
    # two runs at a time, rounded up to the next ten
    assert int(said) % 10 == 0
    assert 0 <= int(said) - 2 * sum(seconds) / 2 / 60 < 10


def test_hours_of_a_plan_count_timed_runs_alone():
    files = (reference_dir("full") / "records").glob("*.json")
    runs = [json.loads(path.read_text("utf-8")) for path in files]
    alone, others = (
        sum(run["run_seconds"] for run in runs if bool(run.get("timed")) == timed)
        for timed in (True, False)
    )
    (said,) = re.findall(r"(?m)^\| `full` .* \| ([\d.]+) h \| [^|]*\|$", NUMBERS)
    assert float(said) == pytest.approx((alone + others / 2) / 3600, abs=0.051)


def test_samples_beside_the_table_are_as_many_as_the_records():
    (caption,) = re.findall(r"(?m)^Samples behind each cell: (.*)\.$", NUMBERS)[:1]
    (said,) = [part for part in caption.split("; ") if "ADMM1" in part]
    folder = reference_dir("full") / "records"
    counts = [
        sum(
            len(list(folder.glob(f"04_prune_model--admm1-{at}{seed}.json")))
            for seed in ("", "-seed*")
        )
        for at in ("50", "60", "70", "80", "2of4")
    ]
    most = statistics.mode(counts)
    columns = zip(("50 %", "60 %", "70 %", "80 %", "2:4"), counts, strict=True)
    others = [f"{count} at {at}" for at, count in columns if count != most]
    assert said.partition(" of ")[0] == str(most) + f" ({', '.join(others)})" * bool(
        others
    )


def test_budgets_of_wanda_and_admm1_differ_as_said():
    budgets = [
        inspect.signature(METHODS[name]).parameters["budget"].default
        for name in ("wanda", "admm1")
    ]
    assert budgets == ["output", "matrix"]
    assert "counts its zeros over a whole matrix" in NUMBERS


def test_it_says_how_many_records_are_of_earlier_code(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "reference_dir", lambda plan: tmp_path / plan)
    assert pages.earlier_code() == ""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "earlier.txt").write_text(
        "3 of 78 records of full are of ...\n"
    )
    assert "3 of 78 records" in pages.earlier_code()


def anchors(page):
    """The anchors of a page: of its headings, as GitHub makes them, and those it sets."""
    text = page.read_text("utf-8")
    heads = re.findall(r"(?m)^#+ (.+)$", text)
    words = (
        re.sub(r"[^\w\- ]", "", unicodedata.normalize("NFC", head)) for head in heads
    )
    made = {each.strip().lower().replace(" ", "-") for each in words}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


def test_less_text_makes_admm_grad_cost_more_as_claim_12_says():
    folder = reference_dir("laptop") / "records"
    seconds = [
        json.loads((folder / f"04_prune_model--{method}-60.json").read_text("utf-8"))[
            "metrics"
        ]["prune_seconds"]["value"]
        for method in ("admm-grad", "sparsegpt")
    ]
    assert 1.4 < seconds[0] / seconds[1] < 1.6  # "about half more"


def test_boolq_has_as_much_of_the_lead_as_the_page_says():
    rights = {}
    for method in ("admm-grad", "sparsegpt"):
        for path in (reference_dir("full") / "records").glob(
            f"05_zero_shot--{method}-50*.json"
        ):
            run = json.loads(path.read_text("utf-8"))
            for task, answers in run["series"]["zero_shot"].items():
                share = statistics.mean(answers["acc"])
                rights.setdefault((task, method), []).append(share)
    leads = {
        task: statistics.mean(rights[task, "admm-grad"])
        - statistics.mean(rights[task, "sparsegpt"])
        for task, _ in rights
    }
    seven = set(leads) - {"piqa", "sciq", "lambada_openai"}
    every, theirs = (
        100 * leads["boolq"] / sum(leads[task] for task in tasks)
        for tasks in (leads, seven)
    )
    assert len(seven) == 7
    said = (
        f"BoolQ alone accounts for {every:.0f} % of ADMM-Grad's lead over SparseGPT on the ten "
        f"tasks, and {theirs:.0f} % of its lead on the seven"
    )
    assert said in re.sub(r"\s+", " ", NUMBERS)


def test_what_is_not_made_yet_is_named():
    said = re.sub(r"\s+", " ", NUMBERS).partition("Not made yet: ")[2].partition(".")[0]
    for plan in ("full", "beyond", "second"):
        made = {path.stem for path in (reference_dir(plan) / "records").glob("*.json")}
        missing = {run.id for run in read_plan(plan)} - made
        assert (f"of `{plan}` " in said) == bool(missing)
        for run in missing:
            assert run.partition("--")[2].partition("-seed")[0] in said


def test_links_of_every_page_lead_to_files():
    """But for the pages of the book's own, whose links its test follows."""
    listed = ["git", "ls-files", "-z", "*.md", ":!book"]
    names = subprocess.check_output(listed, cwd=root(), text=True)
    dead = []
    for page in filter(None, names.split("\0")):
        path = root() / page
        links = re.findall(r"\]\((?!\w+:|#)([^)\s]+)\)", path.read_text("utf-8"))
        for file, _, anchor in (link.partition("#") for link in links):
            found = path.parent / file
            if not found.exists() or (anchor and anchor not in anchors(found)):
                dead.append((page, file, anchor))
    assert dead == []
    assert "README.md" in names


def test_the_example_runs(monkeypatch, tmp_path):
    # the same lines on the tiny model: a name that moved, or a changed signature, breaks this
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    code = example.replace('load_model("embedded"', 'load_model("tiny"')
    names = {"__name__": "readme"}
    exec(code.replace("sequences=32", "sequences=2"), names)
    kept = [keep.float().mean().item() for keep in masks_of(names["model"]).values()]
    assert kept == pytest.approx([0.4] * len(kept), abs=0.01)
    assert (tmp_path / "my-pruned-model").is_dir()
