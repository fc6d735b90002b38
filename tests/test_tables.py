"""Tables: hand-written records, so that every number can be checked by eye."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from helpers.errors import RecordError
from helpers.results import tables

SETTING = {
    "model": "embedded",
    "calibration": "embedded",
    "sequences": 16,
    "length": 512,
    "evaluation": "embedded",
    "window": 512,
    "windows": 20,
}


def record(method: str, sparsity: float, perplexity: float, **parameters: object) -> dict:
    reads_text = method not in ("dense", "magnitude")
    return {
        "notebook": "04_prune_model",
        "name": "x",
        "parameters": {
            "method": method,
            "sparsity": sparsity,
            "pattern": "unstructured",
            "options": {},
            "calibration_seed": 0,
            **SETTING,
            **parameters,
        },
        "metrics": {
            "perplexity": {"value": perplexity, "unit": "1"},
            "prune_seconds": {"value": 10.0, "unit": "s"},
            "evaluate_seconds": {"value": 4.0, "unit": "s"},
        },
        "data": {"evaluation": {}} | ({"calibration": {}} if reads_text else {}),
        "device": "cpu, 2 threads",
        "peak_memory_bytes": 2_500_000_000,
    }


@pytest.fixture
def runs() -> list[dict]:
    return [
        record("admm-grad", 0.6, 30.0),
        record("admm-grad", 0.6, 33.0, calibration_seed=1),
        record("admm-grad", 0.6, 27.0, calibration_seed=2),
        record("admm-grad", 0.6, 31.0, options={"schedule": "released"}),
        record("admm-grad", 0.5, 25.0, pattern="4:8"),
        record("admm-grad", 0.5, 26.0, pattern="2:4"),
        record("wanda", 0.5, 22.5),
        record("wanda", 0.6, 44.0, sequences=4),
        record("new", 0.6, 40.0),
        record("magnitude", 0.5, 1234.5, sequences=128),
        record("dense", 0.0, 17.7, sequences=1),
        {"notebook": "02_admm_layer_solve", "metrics": {}, "parameters": {}},
    ]


def test_methods_by_sparsity(runs: list[dict]) -> None:
    frame = tables.perplexity_table(runs)
    assert list(frame.columns) == ["50 %", "60 %", "2:4", "4:8"]
    assert list(frame.index) == [
        "dense",
        "magnitude",
        "wanda",
        "wanda (sequences=4)",
        "admm-grad",
        "new",
    ]
    assert (frame.loc["dense"] == 17.7).all()
    assert frame.loc["admm-grad", "60 %"] == 30.0  # the mean of three seeds and of nothing else
    assert frame.loc["wanda", "50 %"] == 22.5 and pd.isna(frame.loc["wanda", "60 %"])
    assert (frame.loc["admm-grad", "2:4"], frame.loc["admm-grad", "4:8"]) == (26.0, 25.0)


def test_spread_is_half_the_range_over_seeds(runs: list[dict]) -> None:
    spread = tables.perplexity_spread(runs)
    assert spread.loc["admm-grad", "60 %"] == 3.0
    assert spread.notna().sum().sum() == 1


def test_tables_do_not_depend_on_the_order_of_records(runs: list[dict]) -> None:
    pd.testing.assert_frame_equal(
        tables.perplexity_table(runs), tables.perplexity_table(runs[::-1])
    )
    pd.testing.assert_frame_equal(tables.cost_table(runs), tables.cost_table(runs[::-1]))


def test_cost(runs: list[dict]) -> None:
    frame = tables.cost_table(runs)
    assert frame.loc["admm-grad", "runs"] == 3  # neither N:M nor the variant
    assert frame.loc["admm-grad", "prune (s)"] == 10.0
    assert frame.loc["dense", "peak memory (GB)"] == 2.5


def test_cost_counts_runs_with_all_parts_where_there_are_any(runs: list[dict]) -> None:
    runs[0]["metrics"] |= {"selection_seconds": {"value": 2.0, "unit": "s"}}
    runs[0]["metrics"] |= {"solve_seconds": {"value": 5.0, "unit": "s"}}
    runs[1]["metrics"] |= {"solve_seconds": {"value": 7.0, "unit": "s"}}  # selection inside
    frame = tables.cost_table(runs)
    assert frame.loc["admm-grad", ["runs", "solve (s)", "selection (s)"]].tolist() == [1, 5.0, 2.0]
    assert pd.isna(frame.loc["wanda", "selection (s)"])


def test_variants_are_compared_with_the_same_seeds(runs: list[dict]) -> None:
    runs.append(
        record("admm-grad", 0.6, 36.3, calibration_seed=1, options={"schedule": "released"})
    )
    runs.append(record("admm-grad", 0.9, 99.0, options={"rho": 3.0}))  # no default at 90 %
    frame = tables.variant_table(runs)
    assert list(frame.index) == ["admm-grad (schedule=released)"]
    row = frame.iloc[0]
    assert (row["at"], row["seeds"]) == ("60 %", 2)
    assert row["perplexity"] == pytest.approx((31.0 + 36.3) / 2)
    assert row["default"] == pytest.approx((30.0 + 33.0) / 2)
    # +3.33 and +10 %: their mean, and the standard error of two
    assert row["change (%)"] == pytest.approx(6.6667, abs=1e-3)
    assert row["± (%)"] == pytest.approx(3.3333, abs=1e-3)
    assert pd.isna(tables.variant_table(runs[:-2]).iloc[0]["± (%)"])  # one seed
    assert tables.variant_table(runs[:3]) is None


def test_a_method_that_was_only_run_with_options_is_no_variant() -> None:
    runs = [record("dense", 0.0, 17.7), record("new", 0.5, 20.0, options={"steps": 2})]
    assert list(tables.perplexity_table(runs).index) == ["dense", "new (steps=2)"]
    assert tables.variant_table(runs) is None


def zero_shot(method: str, arc: list[int], rte: list[int], items: list[int] | None = None) -> dict:
    series, metrics = {}, {}
    for task, answers in (("arc_easy", arc), ("rte", rte)):
        asked = items or list(range(len(answers)))
        series[task] = {"version": 1.0, "size": 99, "items": asked, "acc": answers}
        metrics[f"{task}_acc"] = {"value": sum(answers) / len(answers), "unit": "1"}
        metrics[f"{task}_acc_stderr"] = {"value": 0.03, "unit": "1"}
    entry = record(method, 0.5, 0.0)
    versions = {"lm-eval": "0.4.13"}
    return entry | {
        "notebook": "05_zero_shot",
        "metrics": metrics,
        "series": {"zero_shot": series},
        "versions": versions,
    }


def test_zero_shot_has_the_papers_columns_and_a_mean() -> None:
    runs = [zero_shot("wanda", [1, 0, 0, 0], [1, 1]), zero_shot("dense", [1, 1, 1, 0], [1, 0])]
    frame, spread = tables.zero_shot_table(runs)
    assert list(frame.columns) == ["RTE", "ARC-e", "mean"]  # the paper's order
    assert list(frame.index) == ["dense", "wanda, 50 %"]
    assert frame.loc["dense"].tolist() == [0.5, 0.75, 0.625]
    assert spread.loc["dense", "mean"] == pytest.approx((2 * 0.03**2) ** 0.5 / 2)
    assert tables.zero_shot_table(runs, "acc_norm") is None
    assert tables.zero_shot_table([]) is None


def test_paired_differences_are_of_the_same_items() -> None:
    dense, other = [1, 1, 1, 0] * 10, [1, 0, 0, 0] * 10
    runs = [zero_shot("dense", dense, [1, 0]), zero_shot("wanda", other, [1, 0])]
    row = tables.paired_table(runs).loc["wanda, 50 % − dense"]
    # differences 0, −1, −1, 0: mean −0.5, deviation 0.5064, over the root of 40
    assert row["ARC-e"] == "**-0.500 ± 0.080**" and row["RTE"] == "+0.000 ± 0.000"
    runs[1] = zero_shot("wanda", other, [1, 0], items=[5, 6])
    assert tables.paired_table(runs) is None or "RTE" not in tables.paired_table(runs)


def update(solver: str, error: float, iterations: int | None = None, **settings: object) -> dict:
    row = dict.fromkeys(("rho", "precondition", "damping", "learning_rate"))
    row |= {"solver": solver, "sparsity": 0.6, "iterations": iterations, "error": error}
    return row | {"heldout": 2 * error, "excess": error - 0.1, "seconds": 1.0} | settings


def test_weight_update_takes_the_best_rate_of_each_problem() -> None:
    slow = update("adam", 0.3, 200, learning_rate=0.1, precondition=False, damping=0.1)
    fast = update("adam", 0.2, 200, learning_rate=0.01, precondition=False, damping=0.1)
    ours = update("admm", 0.1, 20, rho=1.0, precondition=True, damping=0.1)
    odd = update("admm", 0.4, 20, rho=1.0, precondition=False, damping=0.1)
    asked = {"model": "m", "block": 2, "layer": "mlp.up_proj"}
    first = {"series": {"update": [slow, fast, ours, odd, update("none", 0.9)]}}
    second = {"series": {"update": [slow, ours | {"error": 0.3}]}}
    first, second = first | {"parameters": asked}, second | {"parameters": asked | {"block": 5}}
    frame = tables.update_table([first, second, {"series": None}])
    assert list(frame.index) == [
        "no update",
        "Adam (best rate)",
        "ADMM (ρ = 1, not preconditioned)",
        "ADMM (ρ = 1)",
    ]
    assert frame.loc["Adam (best rate)", ["problems", "error"]].tolist() == [2, 0.25]
    assert frame.loc["ADMM (ρ = 1)", ["error", "held-out"]].tolist() == pytest.approx([0.2, 0.2])
    assert frame.loc["ADMM (ρ = 1)", "excess, worst (%)"] == pytest.approx(0.0)
    assert tables.update_table([{"series": None}]) is None
    (section,) = tables.sections([first | {"notebook": "x"}, second | {"notebook": "x"}])[
        "weight_update"
    ]
    assert "up_proj of blocks 2, 5; at 60 %" in section.note


def test_mask_rules_are_shares_of_the_default_on_the_same_layer() -> None:
    def row(layer: str, error: float, **changes: object) -> dict:
        asked = {"mask_steps": 15, "schedule": "paper", "budget": "matrix"} | changes
        where = {"block": 2, "layer": layer, "pattern": "unstructured", "sparsity": 0.5}
        return asked | where | {"error": error, "heldout": error}

    rows = [row("q", 0.1), row("q", 0.2, mask_steps=0), row("o", 1.0)]
    rows += [row("o", 8.0, mask_steps=0), row("o", 1.0, budget="output")]
    frame = tables.mask_table([{"series": {"ablation": rows}}])
    assert frame.loc["default", "50 %"] == pytest.approx(100)
    assert frame.loc["one-shot mask (no steps)", "50 %"] == pytest.approx(400)  # root of 2 · 8
    assert frame.loc["budget per output", "50 %"] == pytest.approx(100)


def test_only_dense() -> None:
    frame = tables.perplexity_table([record("dense", 0.0, 17.7)])
    assert frame.to_dict() == {"0 %": {"dense": 17.7}}


def test_markdown(runs: list[dict]) -> None:
    text = tables.to_markdown(tables.perplexity_table(runs), tables.perplexity_spread(runs))
    lines = text.splitlines()
    assert lines[0] == "| method | 50 % | 60 % | 2:4 | 4:8 |"
    assert lines[1] == "| :-- | --: | --: | --: | --: |"
    assert "| magnitude | 1,234 | – | – | – |" in lines
    assert "| admm-grad | – | 30.00 ± 3.00 | 26.00 | 25.00 |" in lines


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.0, "3.00"),
        (0.0, "0.00"),
        (0.0123, "0.0123"),
        (0.75, "0.750"),
        ("a", "a"),
        (17.714, "17.71"),
        (123.45, "123.5"),
        (12345.6, "12,346"),
        (2.5e7, "2.5e+07"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert tables.format_number(value) == text


def test_files(runs: list[dict], tmp_path: Path) -> None:
    paths = tables.write_tables(runs, tmp_path / "tables")
    assert [path.name for path in paths] == [
        "cost.csv",
        "cost.md",
        "perplexity.csv",
        "perplexity.md",
        "variants.csv",
        "variants.md",
    ]
    text = (tmp_path / "tables" / "perplexity.md").read_text()
    assert text.startswith(
        "Model: SmolLM2-135M-Instruct (embedded). Perplexity on Wikipedia text (embedded), "
        "20 windows of 512 tokens. Calibration on C4 text (embedded), 16 x 512 tokens."
    )
    assert "16 x 512 tokens" in text and "half the range over seeds" in text
    frame = pd.read_csv(tmp_path / "tables" / "perplexity.csv", index_col="method")
    assert frame.loc["dense", "60 %"] == 17.7
    assert (
        "| admm-grad | 3 | – | – | – | – | 10.00 | 4.00 | 2.50 |"
        in (tmp_path / "tables/cost.md").read_text()
    )
    assert "Device: cpu, 2 threads." in (tmp_path / "tables/cost.md").read_text()


def test_a_section_for_each_model(tmp_path: Path) -> None:
    runs = [record("dense", 0.0, 5.0, model="a/small"), record("dense", 0.0, 4.0, model="b/big")]
    tables.write_tables(runs, tmp_path)
    text = (tmp_path / "perplexity.md").read_text()
    assert text.count("| dense |") == 2 and "Model: b/big." in text
    for run in runs:
        run["parameters"] |= {"windows": 0, "evaluation": "wikitext2"}
    assert "Perplexity on wikitext2, all windows of 512 tokens." in tables.setting(runs)
    frame = pd.read_csv(tmp_path / "perplexity.csv", index_col=["about", "method"])
    assert frame.loc[("b/big", "dense"), "0 %"] == 4.0


def test_nothing_to_show(tmp_path: Path) -> None:
    assert tables.write_tables([], tmp_path / "tables") == []
    with pytest.raises(RecordError, match="04_prune_model") as error:
        tables.perplexity_table([])
    assert "\n" not in str(error.value)
