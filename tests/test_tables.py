"""Tables: hand-written records, so that every number can be checked by eye."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from handmade import metric, pruned, scored, update_row, with_series

from helpers.paths import reference_dir, root
from helpers.report import claims_markdown, tables, with_half, write_tables
from helpers.report.records import read_records
from helpers.report.tables import all_tables


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
    assert committed.pop("claims.md") == claims_markdown(
        records, folder
    )  # links start there
    paths = write_tables(records, tmp_path)
    assert {path.name: path.read_text("utf-8") for path in paths} == committed


def test_tables_and_claims_need_no_docstrings(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from helpers.report import claims_markdown, read_records, write_claims, write_tables\n"
        "reference, folder = map(Path, sys.argv[1:])\n"
        "records = read_records(reference / 'records')\n"
        "write_tables(records, folder), write_claims(records, folder)\n"
        "page = claims_markdown(records, reference / 'tables')  # links start there\n"
        "(folder / 'claims.md').write_text(page, 'utf-8')"
    )
    reference = reference_dir("beyond")
    command = [sys.executable, "-OO", "-c", code, reference, tmp_path]
    subprocess.run(command, cwd=root(), check=True)
    for path in (reference / "tables").glob("*.md"):
        assert (tmp_path / path.name).read_text("utf-8") == path.read_text("utf-8")


@pytest.mark.parametrize(
    "value, half, text",
    [
        (115.54, 2.04, "115.5 ± 2.0"),
        (34.58, 0.0996, "34.58 ± 0.10"),
        (1125.4, 153.3, "1,125 ± 153"),
        (0.9191, 0.00706, "0.919 ± 0.007"),
        (4065300.0, math.nan, "4,065,000"),
    ],
)
def test_a_number_and_its_error_have_the_same_decimals(value, half, text):
    assert with_half(value, half) == text


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
    assert table.markdown.endswith("| 60 % | 1 | 34.10 | 31.00 | 10.00 |\n")
    runs += [pruned("admm-grad", "60 %", 40.0, seed=1)]
    (table,) = all_tables(runs)["perplexity"]
    assert table.markdown.endswith("| ADMM-Grad | 35.50 |\n")  # two say nothing
    runs += [pruned("admm-grad", "60 %", 35.5, seed=2)]
    (table,) = all_tables(runs)["perplexity"]
    # the deviation is 4.5: 4.303 * 4.5 / √3
    assert table.markdown.endswith("| ADMM-Grad | 36 ± 11 |\n")


def test_a_row_on_other_windows_stands_in_a_table_with_its_dense_model(runs):
    ours = pruned("admm-grad", "60 %", 20.0, windows=4)
    dense = pruned("dense", "0 %", 16.0, windows=4)
    first, second = all_tables([ours, dense, *runs])["perplexity"]
    assert first.frame["60 %"][["dense", "admm-grad"]].tolist() == [17.7, 30.0]
    assert second.frame["60 %"].to_dict() == {"dense": 16.0, "admm-grad": 20.0}
    assert ", 4 windows of 512" in second.note
    assert "not run" not in first.note + second.note
    _, second = all_tables([ours, *runs])["perplexity"]
    assert "dense model was not run" in second.note


def test_cost_is_the_median_over_runs_without_variants(runs):
    for run, seconds in zip(
        runs, (2.0, 1.0, 90.0), strict=False
    ):  # one of them was disturbed
        run["metrics"]["solve_seconds"] = metric(seconds + 1.0, "s")
    frame = tables.cost_table(runs)
    assert frame.loc["admm-grad", ["runs", "solve (s)"]].tolist() == [5, 3.0]
    assert frame.loc["dense", ["prune (s)", "peak memory (GB)"]].tolist() == [10.0, 2.5]


def test_variants_are_compared_with_the_same_seeds(runs):
    for seed, perplexity in ((1, 36.3), (2, 28.8)):
        options = {"schedule": "released"}
        runs.append(pruned("admm-grad", "60 %", perplexity, seed, options=options))
    runs.append(
        pruned("admm-grad", "90 %", 99.0, options={"rho": 3.0})
    )  # no default at 90 %
    (table,) = all_tables(runs)["variants"]
    # +3.33, +10 and +6.67 %: their deviation is 3.33, and 4.303 * 3.33 / √3 is 8.3
    row = "| ADMM-Grad (schedule=released) | 60 % | 3 | 32.03 | 30.00 | 6.7 ± 8.3 |"
    assert table.markdown.endswith(f" --: |\n{row}\n")
    assert "variants" not in all_tables(runs[:3])


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
    assert section.frame.loc["chance"].tolist() == [0.5, 0.25, 0.375]
    assert (
        "| chance | 0.500 | 0.250 | 0.375 |\n| Dense | 0.50 ± 0.50" in section.markdown
    )
    assert section.note.endswith(
        "2 to 4 items a task, the same for every model; lm-eval 0.4.13."
    )


def test_paired_differences_are_of_the_same_items():
    runs = [
        scored("dense", arc_easy=[1, 1, 1, 0] * 10, rte=[1, 0]),
        scored("wanda", arc_easy=[1, 0, 0, 0] * 10, rte=[1, 0]),
    ]
    row = tables.paired_table(runs).loc["wanda, 50 % − dense"]
    # differences 0, −1, −1, 0: mean −0.5, deviation 0.5064, over the root of 40
    assert row["ARC-e"] == "**-0.500 ± 0.080**"
    assert row["RTE"] == "+0.000 ± 0.000"
    for task in runs[1]["series"]["zero_shot"].values():
        task["items"] = [number + 100 for number in task["items"]]
    assert tables.paired_table(runs).empty


def test_weight_update_takes_the_best_rate_of_each_problem():
    rates = {"precondition": False, "damping": 0.1, "sparsity": 0.6}
    slow = update_row("adam", 200, error=0.3, learning_rate=0.1, **rates)
    fast = update_row("adam", 200, error=0.2, learning_rate=0.01, **rates)
    ours = update_row("admm", error=0.1, heldout=0.2, excess=0.0, sparsity=0.6)
    odd = update_row("admm", error=0.4, precondition=False, sparsity=0.6)
    early = update_row(
        "admm", 5, error=0.4, rho=3.0, sparsity=0.6
    )  # only shown after 20
    none = update_row("none", None, error=0.9, sparsity=0.6)
    where = {"block": 2, "layer": "mlp.up_proj"}
    second = [row | {"layer": "mlp.down_proj"} for row in (slow, ours | {"error": 0.3})]
    rows = [slow, fast, ours, odd, early, none, *second]
    frame = tables.update_table(
        [with_series("02", where, update=rows), {"series": None}]
    )
    other = "ADMM (ρ = 1, not preconditioned)"
    assert list(frame.index) == ["no update", "Adam (best rate)", other, "ADMM (ρ = 1)"]
    assert frame.loc["Adam (best rate)", ["problems", "error"]].tolist() == [2, 0.25]
    assert frame.loc["ADMM (ρ = 1)", ["error", "held-out"]].tolist() == pytest.approx(
        [0.2, 0.2]
    )
    assert frame.loc["ADMM (ρ = 1)", "excess, worst (%)"] == 0


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


def test_each_model_has_its_table(tmp_path):
    runs = [
        pruned("dense", "0 %", 5.0, model="a"),
        pruned("dense", "0 %", 4.0, model="b/c"),
    ]
    runs[1]["data"] = {"evaluation": {"start_token": 2}}
    write_tables(runs, tmp_path)
    first, second = (tmp_path / "perplexity.md").read_text().split("\nModel: ")
    assert "| Dense | 5.00 |" in first
    assert "start token" not in first
    assert second.startswith("b/c.")
    assert "| Dense | 4.00 |" in second
    assert " tokens, after a start token. Calibration" in second
