"""What `make reproduce` prints at its end, of our records of the plan laptop and changed copies."""

import copy

import pytest

from helpers.paths import TABLES_NOTEBOOK, reference_dir
from reproduction import commands
from reproduction.compare import WIDTH, judge, verdict_page
from reproduction.ending import ending, how_to_read, lowest
from reproduction.records import read_records, record_id
from reproduction.runs import of_notebook
from reproduction.tables import perplexity_tables

WANDA, MINE = "04_prune_model--wanda-60", "07_your_own_method--my-method-60"


@pytest.fixture(scope="module", name="ours")
def committed():
    records = read_records(reference_dir("laptop") / "records")
    return [record for record in records if record["notebook"] != TABLES_NOTEBOOK]


def made(ours, processor="", **factors):
    """Copies of our records on a processor, their perplexities times a factor by run."""
    records = copy.deepcopy(ours)
    for record in records:
        if processor:
            record["platform"]["processor"] = processor
        if factor := factors.get(record["name"].replace("-", "_")):
            record["metrics"]["perplexity"]["value"] *= factor
    return records


def shown(here, ours, plan="laptop"):
    """The lines of the end, none of which is wider than a terminal, and its text."""
    text = ending(judge(here, ours, ours), plan, here, ours)
    assert max(map(len, text.splitlines())) <= WIDTH
    return text.splitlines(), " ".join(text.split())


@pytest.mark.parametrize("processor", ["", "another"])
def test_where_all_agrees_it_is_short_and_says_so_first(ours, processor):
    lines, text = shown(made(ours, processor), ours)
    assert len(lines) <= 30
    assert lines[0].startswith(f"Your {len(ours)} runs reproduce our records of them.")
    assert "not test the paper's own tables" in lines[0]
    assert "digit for digit ours:" in text
    assert "all 72 answers and all other numbers are equal." in text
    assert ("here it did not" in text) == bool(processor)
    assert "NO" not in text.replace("NOT", "").replace("ONLY", "")
    assert "allowed" not in text and "\n- " not in "\n".join(lines)
    for name in ("results/laptop/tables", "figures", "records", "verdict.txt"):
        assert name in text


def test_what_differs_within_limits_is_counted_beside_ours(ours):
    here = made(ours, "another", wanda_60=1.01, sparsegpt_60=1.05)
    lines, text = shown(here, ours)
    assert lines[0].startswith(f"Your {len(ours)} runs reproduce ")
    assert "with ours in brackets where the digits differ:" in text
    assert "107.2 (106.1)" in text and "98.61 (93.91)" in text
    assert "here it moved some, all within what is allowed:" in text
    # the furthest, and what it may be
    assert (
        "perplexities, of which tables show some, differ from ours, by at most 5.0 %"
        in text
    )
    assert "All 72 answers are equal." in text and "order as ours" in text


def test_a_run_that_is_too_far_apart_is_named_first(ours):
    for processor in ("", "another"):
        lines, text = shown(made(ours, processor, wanda_60=1.09), ours)
        count = len(ours)
        assert (
            lines[0]
            == f"1 of your {count} runs does NOT reproduce ours; {count - 1} do."
        )
        assert lines[2].startswith("- Further apart than is allowed: Wanda at 60 %: ")
        assert "115.7 (106.1)" in text and f"records/{WANDA}.json" in text
        (at,) = [
            place
            for place, line in enumerate(lines)
            if line.startswith("Wanda at 60 %  ")
        ]
        assert "115.7  106.1  +9.00 %" in lines[at]
        assert lines[at - 1].split() == [
            "run",
            "what",
            "here",
            "ours",
            "apart",
            "allowed",
        ]
        assert at < lines.index("| method | 50 % | 60 % | 70 % | 2:4 |")
        assert "all within" not in text and "They do" not in text


def test_methods_that_change_places_are_on_the_screen(ours):
    _, text = shown(made(ours, "another", wanda_50=1.004), ours)
    assert "Wanda and SparseGPT at 50 % (ours are 0.2 % apart)" in text


def test_runs_without_a_pair_are_counted(ours):
    """A run with no committed record, and a committed one with no record here."""
    less = [record for record in ours if record_id(record) not in (WANDA, MINE)]
    lines, text = shown(ours, less)
    assert lines[0].startswith(f"Your {len(less)} runs reproduce")
    assert "2 more runs have no record of ours to be compared with." in text
    assert "– " in text and "106.1 (–)" in text
    lines, text = shown(less, ours)
    assert lines[0].startswith(
        f"Incomplete: 2 of {len(ours)} runs left no record here."
    )
    assert (
        "Not run here with this code: 2 (Wanda at 60 %, notebook 07, my-method" in text
    )
    assert shown(ours[:1], [])[0][0].startswith("Nothing to compare")


def test_runs_without_a_perplexity_have_no_table(ours):
    own = of_notebook(ours, "05_zero_shot")
    lines, text = shown(own, own)
    assert lines[0].startswith("Your 2 runs reproduce") and "| method |" not in text
    assert "They do: all 72 answers and all other numbers are equal." in text
    own = of_notebook(ours, "01_calibration_capture")
    assert "all numbers are equal." in shown(own, own)[1]


def test_all_that_the_screen_leaves_out_is_in_the_file(ours):
    """Model, texts and samples; numbers of other windows; what is not checked."""
    page = verdict_page(judge(ours, ours, ours), "laptop", how_to_read(ours))
    text = " ".join(page.split())
    for words in (
        perplexity_tables(ours)[0].note,
        "of notebooks 00, 08 and 09 are of other windows",
        "are of 36 questions: too few",
        "Not checked: README's table",
        "Texts that models wrote: 3 of 3",
    ):
        assert words in text
    assert max(map(len, page.splitlines())) <= WIDTH


def test_the_lowest_method_of_each_column(ours):
    (table,) = perplexity_tables(ours)
    frame = table.frame.copy()
    assert lowest(frame) == (
        "ADMM-Grad, the paper's method, is lowest in every column. (ALPS, in README, was not run.)"
    )
    frame.loc["alps"] = [30.0, 70.0, 170.0, 80.0]
    assert lowest(frame) == (
        "ALPS is lowest at 50 %; ADMM-Grad, the paper's method, at 60 %, 70 % and 2:4."
    )
    assert lowest(frame.loc[["dense", "alps"]]) == ""


def test_windows_are_told_where_records_keep_their_losses(ours):
    _, text = shown(ours, ours)
    assert "4 windows of text, 1 calibration sample. Compare rows, not" in text
    assert "one sample decides nothing." in text
    here = made(ours)
    for place, record in enumerate(of_notebook(here, "04_prune_model")):
        losses = [2.0 + place / 10, 3.0, 4.0 + place / 20, 3.5]
        record["series"] = (record["series"] or {}) | {
            "window_losses": {"perplexity": losses}
        }
    _, text = shown(here, ours)
    assert "Other windows could move all perplexities together by about" in text
    assert "(without Magnitude): results/laptop/tables/windows.md." in text


def test_runs_are_counted_above_the_verdict():
    line = commands.how_many_done(25, 2, 0, 1080.0)
    assert line == (
        "27 runs are done (18 min in this call): 25 measure something, 2 only make tables"
    )
    line = commands.how_many_done(25, 0, 24, 80.0)
    assert line == "25 runs are done (80 s in this call): 24 kept from an earlier call"
