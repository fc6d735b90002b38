"""Tables: hand-written records, so that every number can be checked by eye."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from helpers import tables
from helpers.errors import RecordError

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
        "admm-grad (schedule=released)",
        "new",
    ]
    assert (frame.loc["dense"] == 17.7).all()
    assert frame.loc["admm-grad", "60 %"] == 30.0  # the mean of three seeds and of nothing else
    assert frame.loc["admm-grad (schedule=released)", "60 %"] == 31.0
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
    assert frame.loc["admm-grad", "runs"] == 5
    assert frame.loc["admm-grad", "prune (s)"] == 10.0
    assert frame.loc["dense", "peak memory (GB)"] == 2.5


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
    [(3.0, "3.00"), (17.714, "17.71"), (123.45, "123.5"), (12345.6, "12,346"), (2.5e7, "2.5e+07")],
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
    ]
    text = (tmp_path / "tables" / "perplexity.md").read_text()
    assert text.startswith("Model: embedded. Perplexity on embedded text, 20 windows of 512 tokens")
    assert "16 x 512 tokens" in text and "half the range over seeds" in text
    frame = pd.read_csv(tmp_path / "tables" / "perplexity.csv", index_col="method")
    assert frame.loc["dense", "60 %"] == 17.7
    assert "| admm-grad | 5 | 10.00 | 4.00 | 2.50 |" in (tmp_path / "tables/cost.md").read_text()
    assert "Device: cpu, 2 threads." in (tmp_path / "tables/cost.md").read_text()


def test_a_section_for_each_model(tmp_path: Path) -> None:
    runs = [record("dense", 0.0, 5.0, model="a/small"), record("dense", 0.0, 4.0, model="b/big")]
    tables.write_tables(runs, tmp_path)
    text = (tmp_path / "perplexity.md").read_text()
    assert text.count("| dense |") == 2 and "Model: b/big." in text
    frame = pd.read_csv(tmp_path / "perplexity.csv", index_col=["model", "method"])
    assert frame.loc[("b/big", "dense"), "0 %"] == 4.0


def test_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="04_prune_model") as error:
        tables.write_tables([], tmp_path / "tables")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "tables").exists()
