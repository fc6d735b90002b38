"""Tables: hand-written records, so that every number can be checked by eye."""

from __future__ import annotations

import io
import math
import re

import numpy as np
import pandas as pd
import pytest
from handmade import metric, pruned, repaired, scored, update_row, with_series

from helpers.paths import reference_dir
from reproduction import tables
from reproduction.claims_page import claims_heading, claims_markdown
from reproduction.claims_tested import TESTED_HEADING, details_markdown
from reproduction.markdown import Table, beside, to_markdown, with_half
from reproduction.records import read_records, record_id
from reproduction.runs import by_model, runs_frame
from reproduction.tables import all_tables, runs_csv, write_tables


@pytest.fixture
def runs():
    return [
        pruned("admm-grad", "60 %", 30.0),
        pruned("admm-grad", "60 %", 33.0, seed=1),
        pruned("admm-grad", "60 %", 27.0, seed=2),
        pruned("admm-grad", "60 %", 31.0, options={"schedule": "released"}),
        pruned("admm-grad", "4:8", 25.0),
        pruned("admm-grad", "2:4", 26.0),
        pruned("wanda", "50 %", 22.5),
        pruned("wanda", "60 %", 44.0, sequences=4),
        pruned("new", "60 %", 40.0),
        pruned("magnitude", "50 %", 1234.5, sequences=128),
        pruned("dense", "0 %", 17.7, sequences=1),
        {"notebook": "02_admm_layer_solve", "metrics": {}, "parameters": {}},
    ]


@pytest.mark.parametrize("plan", ["laptop", "full", "beyond", "second"])
def test_committed_tables_are_what_this_code_makes_of_the_records(plan, tmp_path):
    records = read_records(reference_dir(plan) / "records")
    folder = reference_dir(plan) / "tables"
    committed = {path.name: path.read_text("utf-8") for path in folder.glob("[!.]*")}
    (runs,) = by_model(records).values()  # not those that make tables
    page = claims_heading(folder) + claims_markdown(runs, folder)  # links start there
    assert committed.pop("claims.md") == page
    tested = TESTED_HEADING + details_markdown(runs, folder)
    assert committed.pop("claims_tested.md") == tested
    paths = write_tables(records, tmp_path)
    assert {path.name: path.read_text("utf-8") for path in paths} == committed


RATIO = ("change (%)", "/ sparsegpt", "/ wanda")  # of two runs


@pytest.mark.parametrize("plan", ["laptop", "full", "beyond", "second"])
def test_a_cell_is_the_same_from_its_own_records_alone(plan):
    """So they are all that it is made of."""
    every = read_records(reference_dir(plan) / "records")
    by_id = {record_id(record): record for record in every}
    found = all_tables(every)
    checked = 0
    for name in ("perplexity", "cost", "variants", "published_ratios", "beyond"):
        for number, table in enumerate(found.get(name, [])):
            frame = table.frame
            assert table.records.shape == frame.shape
            places = list(np.ndindex(frame.shape))
            if name in ("variants", "published_ratios"):
                places = [each for each in places if frame.columns[each[1]] in RATIO]
            for place in places[::5]:
                value, own = frame.iat[place], table.records.iat[place]
                if own:
                    again = all_tables(map(by_id.get, dict.fromkeys(own)))[name]
                    again = again[number if name == "beyond" else 0].frame
                    label, column = frame.index[place[0]], frame.columns[place[1]]
                    # the dense model alone has the column "0 %"
                    alike = again.get(column, again.iloc[:, 0])
                    # and a run of another setting has no longer a name that says so
                    alike = alike[[label]] if label in alike else alike
                    assert any(same == pytest.approx(value) for same in alike)
                    checked += 1
                elif name != "published_ratios":
                    assert pd.isna(value)
    assert checked > 5


def test_a_page_leads_from_a_cell_to_its_records(tmp_path):
    runs = [
        pruned("wanda", at, 30.0 + 10 * seed, seed)
        for at in ("50 %", "60 %")
        for seed in (0, 1)
    ]
    runs += [pruned("admm1", "60 %", 20.0), pruned("dense", "0 %", 10.0)]
    write_tables(runs, tmp_path)
    page = (tmp_path / "records.md").read_text("utf-8")
    path = "../records/04_prune_model--wanda-60 %"
    links = f"[wanda-60 %-0]({path}-0.json) 30.00 · [wanda-60 %-1]({path}-1.json) 40.00"
    assert f"| Wanda | 60 % | 35.00 | {links} |" in page
    assert "| ADMM1 | 60 % | 20.00 | [" in page and "| Dense | all | 10.00 | [" in page


def test_all_runs_are_one_table_for_pandas():
    """From which a cell of the table of perplexities is a line of pandas."""
    records = read_records(reference_dir("full") / "records")
    runs = pd.read_csv(io.StringIO(runs_csv(records)))
    assert runs["run"].tolist() == [record_id(record) for record in records]
    names = [f"04_prune_model--admm-grad-70{seed}" for seed in ("", "-seed1", "-seed2")]
    own = runs[runs["run"].isin(names)]
    assert set(own["parameters.sparsity"]) == {0.7} and own["minutes"].min() > 1
    assert own["metrics.perplexity"].tolist() == pytest.approx(
        [
            record["metrics"]["perplexity"]["value"]
            for record in records
            if record_id(record) in names
        ]
    )
    assert own["commit"].str.len().eq(40).all()


def a_plan(runs):
    """Records that differ in all that decides a row, a column or a table."""
    released = {"schedule": "released"}
    runs = [
        *runs,
        pruned("admm-grad", "60 %", 32.0),  # again, as on another machine
        pruned("admm-grad", "60 %", 36.0, seed=1, options=released),
        pruned("admm-grad", "60 %", 35.0, seed=1, options=released),
        pruned("admm-grad", "60 %", 28.0, seed=2, options=released),
        pruned("admm-grad", "90 %", 99.0, options={"rho": 3.0}),  # no default at 90 %
        pruned("wanda", "2:4", 80.0),
        pruned("sparsegpt", "60 %", 36.0, seed=1, seconds={"solve": 3.0}),
        pruned("dense", "0 %", 16.0, windows=4),
        pruned("admm-grad", "60 %", 20.0, windows=4),
        pruned("magnitude", "60 %", 50.0, windows=8),
        pruned("dense", "0 %", 5.0, model="a/b"),
        pruned("alps", "0.5 %", 9.0, model="a/b", effort="balanced"),
    ]
    runs[-2]["data"] = {"evaluation": {"start_token": 2}}
    runs += [
        scored("dense", arc_easy=[1, 1, 1, 0], rte=[1, 0], lambada_openai=[1, 1]),
        scored("wanda", arc_easy=[1, 0, 0, 0], rte=[1, 1]),
        scored("admm-grad", arc_easy=[1, 0, 0, 1], rte=[1, 1]),
        scored("admm-grad", 1, arc_easy=[1, 1, 0, 1], rte=[0, 1]),
        scored("wanda", 1, arc_easy=[1, 1, 0, 1], rte=[1, 1]),
    ]
    update = [
        update_row("none", None, error=0.9),
        update_row("sparsegpt", None, error=0.2),
        update_row("adam", 200, error=0.2, precondition=True, learning_rate=0.1),
        update_row("adam", 200, error=0.3, precondition=True, learning_rate=0.01),
        update_row("admm", error=0.1, heldout=0.2),
        update_row("admm", 5, error=0.3),
        update_row("admm", error=0.15, damping=0.01),
        update_row("admm", 5, error=0.3, rho=3.0),
        update_row("cg", error=0.2, precondition=False),
        update_row("exact", None, error=0.05, damping=0.1),
    ]
    where = {"block": 2, "pattern": "unstructured", "sparsity": 0.5, "heldout": 0.5}
    rules = [
        {"mask_steps": steps, "schedule": schedule, "budget": budget, "error": error}
        | where
        for steps, schedule, budget, error in (
            (15, "paper", "matrix", 0.1),
            (0, "paper", "matrix", 0.2),
            (4, "released", "output", 0.3),
        )
    ]
    runs += [
        with_series("02", {"layer": "mlp.up_proj"}, update=update),
        with_series("03", ablation=[rule | {"layer": "q"} for rule in rules]),
    ]
    repairs = [
        repaired("admm-grad", "60 %", 80.0, 40.0),
        repaired("admm-grad", "60 %", 88.0, 44.0, seed=1),
        repaired("admm-grad", "60 %", 84.0, 42.0, seed=2),
        repaired("admm-grad", "60 %", 80.0, 60.0, windows=8),
        repaired(
            "admm-grad", "60 %", 60.0, 50.0, allocation="guide", guide_sequences=2
        ),
        repaired("admm-grad", "60 %", 61.0, passes=1, precision="bfloat16"),
        repaired("admm-grad", "60 %", 61.0, sequences=100),
        repaired("sparsegpt", "2:4", 120.0, 50.0),
        repaired("admm-grad", "60 %", 20.0, windows=4, web_windows=4),
    ]
    return [
        *runs,
        *(run | {"timed": run["parameters"]["repair"] == "all"} for run in repairs),
    ]


def test_every_table_of_a_plan(runs, file_regression):
    pages = all_tables(a_plan(runs)).items()
    texts = [
        f"# {name}\n\n{to_markdown(table.frame, table.spread)}"
        for name, tables in pages
        for table in tables
    ]
    file_regression.check("\n".join(texts), extension=".md", encoding="utf-8")


def test_notes_say_on_which_windows(runs):
    first, second, _, other = all_tables(a_plan(runs))["perplexity"]
    for table, words in (
        (first, ", 20 windows of 512 tokens."),
        (second, ", 4 windows of 512 tokens."),
        (other, " tokens, after a start token."),
    ):
        assert words in table.note


@pytest.mark.parametrize(
    "value, half, text",
    [
        (115.54, 2.04, "115.5 ± 2.0"),
        (34.58, 0.0996, "34.58 ± 0.10"),
        (1125.4, 153.3, "1,130 ± 150"),
        (37471.0, 28081.0, "37,000 ± 28,000"),
        (0.9191, 0.00706, "0.919 ± 0.007"),
        (4065300.0, math.nan, "4,065,000"),
    ],
)
def test_a_number_and_its_error_have_the_same_decimals(value, half, text):
    assert with_half(value, half) == text


def test_our_numbers_stand_beside_those_that_differ_in_a_digit_shown():
    made = pd.DataFrame({"50 %": [20.0, 30.0], "60 %": [40.0, math.nan]}, ["a", "b"])
    half = pd.DataFrame({"50 %": [1.0, math.nan]}, ["a", "b"])
    ours = made + pd.DataFrame({"50 %": [0.0, 3.0], "60 %": [0.001, 0.0]}, ["a", "b"])
    cells = beside(Table("", made, half), Table("", ours, half))
    assert cells.loc["a"].tolist() == ["20.0 ± 1.0", "40.00"]
    assert cells.loc["b"].tolist() == ["30.00 (33.00)", "–"]
    # what we have not run
    cells = beside(Table("", made, half), Table("", ours.loc[["a"]], half))
    assert cells.loc["b"].tolist() == ["30.00 (–)", "–"]


def test_rows_on_two_texts_have_two_names():
    runs = [
        pruned("wanda", "60 %", 30.0),
        pruned("wanda", "60 %", 31.0, seed=1),
        pruned("wanda", "60 %", 40.0, calibration="law.txt"),
        pruned("wanda", "60 %", 50.0, calibration="news.txt"),
    ]
    (table,) = all_tables(runs)["perplexity"]
    assert "| Wanda (calibration=law.txt) | 40.00 |" in table.markdown
    assert "| Wanda (calibration=news.txt) | 50.00 |" in table.markdown
    assert runs_frame(runs)["usual"].tolist() == [True, True, False, False]


# the mean of three seeds and of nothing else
BY_SPARSITY = """\
method,50 %,60 %,2:4,4:8
dense,17.7,17.7,17.7,17.7
magnitude,1234.5,,,
wanda,22.5,,,
wanda (sequences=4),,44.0,,
admm-grad,,30.0,26.0,25.0
new,,40.0,,
"""


def test_methods_by_sparsity_and_as_csv(runs):
    assert all_tables(runs)["perplexity"][0].frame.to_csv() == BY_SPARSITY
    _, spread = tables.perplexity_table(runs)
    # the deviation is 3, and t of three seeds 4.303
    half = pytest.approx(4.303 * 3 / 3**0.5, rel=1e-3)
    assert spread.stack().dropna().to_dict() == {("admm-grad", "60 %"): half}


def test_a_seed_of_several_records_counts_once():
    released = {"schedule": "released"}
    runs = [
        pruned("admm-grad", "60 %", 30.0),
        pruned("admm-grad", "60 %", 32.0),
        pruned("admm-grad", "60 %", 32.0, options=released),
        pruned("admm-grad", "60 %", 36.2, options=released),
    ]
    (table,) = all_tables(runs)["variants"]
    assert table.markdown.endswith("| 60 % | 1 | 34.10 | 31.00 | +10.0 |\n")
    runs += [pruned("admm-grad", "60 %", 40.0, seed=1)]
    (table,) = all_tables(runs)["perplexity"]
    assert table.markdown.endswith("| ADMM-Grad | 35.50 |\n")  # two say nothing
    runs += [pruned("admm-grad", "60 %", 35.5, seed=2)]
    (table,) = all_tables(runs)["perplexity"]
    # the deviation is 4.5: 4.303 * 4.5 / √3
    assert table.markdown.endswith("| ADMM-Grad | 36 ± 11 |\n")


def test_cost_is_the_median_over_runs_without_variants(runs):
    for run, seconds in zip(
        runs, (2.0, 1.0, 90.0), strict=False
    ):  # one of them was disturbed
        run["metrics"]["solve_seconds"] = metric(seconds + 1.0, "s")
    frame = tables.cost_table(runs)
    assert frame.loc["admm-grad", ["runs", "solve (s)"]].tolist() == [5, 3.0]
    assert frame.loc["dense", ["prune (s)", "peak memory (GB)"]].tolist() == [10.0, 2.5]
    # those that were timed alone count, if there are any
    runs[0]["timed"] = True
    frame = tables.cost_table(runs)
    cells = frame.loc["admm-grad", ["runs", "alone", "solve (s)"]]
    assert cells.tolist() == [1, 1, 3.0]
    assert frame.loc["dense", "alone"] == 0


def test_zero_shot_has_the_papers_columns_and_a_mean():
    runs = [
        scored("wanda", arc_easy=[1, 0, 0, 0], rte=[1, 1]),
        scored("dense", arc_easy=[1, 1, 1, 0], rte=[1, 0]),
    ]
    frame, spread = tables.accuracy_table(runs)
    # the paper's order
    dense, wanda = "dense,0.5,0.75,0.625", '"wanda, 50 %",1.0,0.25,0.625'
    assert frame.to_csv() == f"model,RTE,ARC-e,mean\n{dense}\n{wanda}\n"
    # deviations over √n: 0.5 / 2, and 0.7071 / √2
    assert spread.loc["dense"].tolist() == pytest.approx([0.5, 0.25, 0.3125**0.5 / 2])
    (section, _) = all_tables(runs)["zero_shot"]
    # shown with a row for each task
    assert section.frame["chance"].tolist() == [0.5, 0.25, 0.375]
    assert "\n| RTE | 0.500 | 0.50 ± 0.50 |" in section.markdown
    assert "2 to 4 items a task, the same for every model" in section.note
    assert "0.4.13" in section.note


def test_paired_differences_are_of_the_same_items():
    runs = [
        scored("dense", arc_easy=[1, 1, 1, 0] * 10, rte=[1, 1, 1, 1]),
        scored("wanda", arc_easy=[1, 1, 1, 1] * 10, rte=[1, 1, 1, 1]),
        scored(
            "wanda", arc_easy=[1, 0, 0, 0] * 10, rte=[0, 0, 1, 1]
        ),  # the last counts
    ]
    row = tables.paired_table(runs).loc["wanda, 50 % − dense"]
    # differences 0, −1, −1, 0: mean −0.5, deviation 0.5064, over the root of 40
    assert row["ARC-e"] == "-0.500 ± 0.080"
    assert row["RTE"] == "-0.500 ± 0.289"  # 0.5774 / 2
    for run in runs[1:]:
        for task in run["series"]["zero_shot"].values():
            task["items"] = [number + 100 for number in task["items"]]
    assert tables.paired_table(runs).empty


def test_half_a_printed_digit_is_printed_alike(monkeypatch):
    """The last bit of a mean differs by the version of pandas."""
    columns = ["pair", "seed", "task", "difference", "error", "shared"]
    for value in (0.0275, math.nextafter(0.0275, 0)):
        rows = pd.DataFrame([["b − a", 0, "RTE", value, 0.001, True]], columns=columns)
        monkeypatch.setattr(tables, "paired_differences", lambda _, rows=rows: rows)
        assert tables.paired_table([]).loc["b − a", "RTE"] == "+0.028 ± 0.001"


@pytest.mark.parametrize(
    ("draws", "error", "shared", "bold"),
    [
        ((0.05, 0.06, 0.07), 0.01, True, True),  # 4.303 · 0.01 / √3 = 0.0248, and 0.020
        ((0.05, 0.06, 0.07), 0.028, True, False),  # 0.056: together 0.0613
        ((0.05, 0.06, 0.07), 0.028, False, True),  # other items are in the interval
        ((0.02, 0.06, 0.10), 0.001, True, False),  # 0.0994 alone
        ((0.06, 0.06), 0.001, True, False),  # two seeds decide nothing
    ],
)
def test_bold_is_what_a_claim_would_decide(monkeypatch, draws, error, shared, bold):
    columns = ["pair", "seed", "task", "difference", "error", "shared"]
    rows = [
        ["b − a", seed, task, draw, error, shared]
        for seed, draw in enumerate(draws)
        for task in ("RTE", "BoolQ")
    ]
    rows = pd.DataFrame(rows, columns=columns)
    monkeypatch.setattr(tables, "paired_differences", lambda _: rows)
    row = tables.paired_table([]).loc["b − a"]
    assert row["RTE"] == row["BoolQ"]
    assert row["RTE"].startswith("**") == bold
    # over two tasks the luck of the items shrinks, that of the draws does not
    assert row["mean"].startswith("**") == (bold or error == 0.028)


def test_draws_that_ask_other_items_know_the_mean_better():
    def part(run, first):
        for task in run["series"]["zero_shot"].values():
            task["items"] = [item + first for item in task["items"]]
        return run

    right = [1, 0] * 10
    runs = [part(scored("dense", rte=right), 20 * k) for k in range(3)]
    runs += [part(scored("wanda", k, rte=right), 20 * k) for k in range(3)]
    frame, errors = tables.accuracy_table(runs)
    assert frame["RTE"].tolist() == [0.5, 0.5]
    # the dense model's 60 answers, and a draw's deviation over √60
    assert errors["RTE"].tolist() == pytest.approx(
        [math.sqrt(0.25 / 59), math.sqrt(0.25 * 20 / 19 / 60)]
    )
    section, *_ = all_tables(runs)["zero_shot"]
    assert "20 items a task and seed, others for each seed" in section.note
    assert "the same for every model" in section.note
    section, *_ = all_tables(runs[1:])["zero_shot"]  # the dense model lacks a part
    assert "not the same for every model" in section.note


def test_answers_name_their_processor():
    run = scored("dense", rte=[1, 0])
    run["platform"] = {"processor": "a kind of Xeon"}
    section, *_ = all_tables([run])["zero_shot"]
    assert "a kind of Xeon" in section.note


def test_weight_update_takes_the_best_rate_of_each_problem():
    rows = [
        update_row("adam", 200, error=0.3, learning_rate=0.1) | {"layer": "q"},
        update_row("adam", 200, error=0.2, learning_rate=0.01) | {"layer": "q"},
        update_row("adam", 200, error=0.4, learning_rate=0.1) | {"layer": "o"},
        update_row("admm", 5, error=0.4, rho=3.0),  # other ρ are only shown after 20
    ]
    frame = tables.update_table([with_series("02", update=rows)])
    assert list(frame.index) == ["Adam (best rate)"]
    row = frame.loc["Adam (best rate)", ["problems", "error"]]
    assert row.tolist() == [2, pytest.approx(0.3)]


def test_mask_rules_are_shares_of_the_default_on_the_same_layer():
    def row(layer, error, **changes):
        asked = {"mask_steps": 15, "schedule": "paper", "budget": "matrix"} | changes
        where = {"block": 2, "layer": layer, "pattern": "unstructured", "sparsity": 0.5}
        return asked | where | {"error": error, "heldout": error}

    rows = [row("q", 0.1), row("q", 0.2, mask_steps=0), row("o", 1.0)]
    rows += [row("o", 8.0, mask_steps=0), row("o", 1.0, budget="output")]
    frame = tables.mask_table([with_series("03", ablation=rows)])
    assert frame["50 %"].to_dict() == {
        "default": pytest.approx(100),
        "one-shot mask (no steps)": pytest.approx(400),  # root of 2 · 8
        "budget per output": pytest.approx(100),
    }


def with_losses(method, seed, losses):
    run = pruned(method, "60 %", math.exp(np.mean(losses)), seed)
    return run | {"series": {"window_losses": {"perplexity": losses}}}


def test_what_windows_add_is_said_where_records_keep_their_losses():
    """Windows differ much; a method is above ADMM-Grad by 0.1, 0.2 or 0.3 in each."""
    base = [2.0, 3.0, 4.0]
    runs = [with_losses("admm-grad", seed, base) for seed in (0, 1)]
    other = [loss + step for loss, step in zip(base, (0.1, 0.2, 0.3), strict=True)]
    runs += [with_losses("wanda", seed, other) for seed in (1, 2)]
    # Student's quantile with two degrees of freedom is 4.303
    alone = [4.303 * deviation / 3**0.5 for deviation in (1.0, 1.1)]
    ratio = 4.303 * 0.1 / 3**0.5
    found = tables.window_spread(tables.perplexity_runs(runs))
    assert found[0]["60 %"].to_dict() == pytest.approx(
        dict(zip(("admm-grad", "wanda"), alone, strict=True)), rel=1e-3
    )
    assert found[1].stack().to_dict() == pytest.approx(
        {("wanda", "60 %"): ratio}, rel=1e-3
    )
    assert found[2] == 3
    (windows,) = all_tables(runs)["windows"]
    assert windows.frame.at["wanda", "60 %"] == pytest.approx(100 * ratio, rel=1e-3)
    assert len(windows.records.at["wanda", "60 %"]) == 4
    note = all_tables(runs)["perplexity"][0].note
    assert f"{100 * sum(alone) / 2:.0f} % of a perplexity" in note
    assert f"{100 * ratio:.0f} % of its ratio to ADMM-Grad's" in note
    # and how many samples each column has: two of both methods
    assert "(seeds) for ±: 2 in each column." in note


def test_nothing_is_said_of_windows_where_no_record_keeps_them(runs):
    assert tables.window_sentence(tables.perplexity_runs(runs)) == ""


def test_a_range_over_windows_leaves_magnitude_out():
    """A model that magnitude ruined varies most, and no comparison rests on it."""
    ratios = pd.DataFrame(
        {"50 %": [0.3, 0.01, 0.02], "60 %": [0.4, 0.05, np.nan]},
        index=["magnitude", "wanda", "sparsegpt"],
    )
    assert tables.middle_and_ends(ratios) == ("1", "2", "5")
    assert tables.middle_and_ends(ratios.loc[["magnitude"]]) is None


def test_the_caption_of_perplexity_leads_to_the_table_of_windows():
    folder = reference_dir("full") / "tables"
    text = (folder / "perplexity.md").read_text("utf-8")
    (link,) = re.findall(r"\((\S+?)\)", text.partition("[windows]")[2])[:1]
    assert (folder / link).exists()
