"""Published numbers: read strictly, and shown only beside the same cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.errors import RecordError
from helpers.paths import root
from helpers.results.published import (
    COLUMNS,
    Published,
    published_table,
    read_published,
)

HEAD = ",".join(COLUMNS)
WANDA = "LLaMA-2-7B,wanda,unstructured,0.5,wikitext2_ppl,2048,6.93,somebody's Table 1"


def record(**changes: Any) -> dict[str, Any]:
    """A record of notebook 04 on LLaMA-2-7B, as far as published_table looks."""
    parameters = {
        "model": "meta-llama/Llama-2-7b-hf",
        "method": "wanda",
        "sparsity": 0.5,
        "pattern": "unstructured",
        "options": {},
        "calibration": "c4",
        "sequences": 128,
        "length": 2048,
        "evaluation": "wikitext2",
        "window": 2048,
        "second_window": 4096,
        "windows": 0,
    }
    values = {"perplexity": 7.0, "perplexity_4096": 6.5, "prune_seconds": 300.0}
    return {
        "parameters": parameters | changes,
        "metrics": {name: {"value": value, "unit": "1"} for name, value in values.items()},
        "data": {"calibration": {"name": "c4"}},
        "device": "Some GPU",
    }


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    """Write published.csv and paper.csv with these lines, and return their folder."""

    def write(published: list[str], paper: list[str] | None = None) -> Path:
        for name, lines in (("published.csv", published), ("paper.csv", paper or [])):
            (tmp_path / name).write_text("\n".join([HEAD, *lines]) + "\n", encoding="utf-8")
        return tmp_path

    return write


def shown(records: list[dict], folder: Path) -> list[tuple]:
    """(metric, window, here, published) of each row."""
    frame = published_table(records, read_published(folder))
    columns = ["metric", "window", "here", "published"]
    return [] if frame is None else list(frame[columns].itertuples(index=False, name=None))


def test_a_match_is_shown(files: Callable[..., Path]) -> None:
    frame = published_table([record()], read_published(files([WANDA])))
    assert frame.to_dict("records") == [
        {
            "model": "LLaMA-2-7B",
            "method": "wanda",
            "pattern": "unstructured",
            "sparsity": 0.5,
            "metric": "wikitext2_ppl",
            "window": 2048,
            "calibration": "c4 128 x 2048",
            "here": 7.0,
            "published": 6.93,
            "source": "somebody's Table 1",
        }
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "huggyllama/llama-7b"},
        {"model": "embedded"},
        {"method": "sparsegpt"},
        {"sparsity": 0.6},
        {"pattern": "2:4"},
        {"window": 1024},
        {"windows": 12},
        {"evaluation": "embedded"},
        {"options": {"budget": "matrix"}},
    ],
    ids=str,
)
def test_another_cell_is_not_shown(files: Callable[..., Path], changes: dict) -> None:
    assert published_table([record(**changes)], read_published(files([WANDA]))) is None


def test_the_second_window_has_its_own_value(files: Callable[..., Path]) -> None:
    longer = WANDA.replace("2048,6.93", "4096,6.4")
    assert shown([record()], files([longer])) == [("wikitext2_ppl", 4096, 6.5, 6.4)]
    assert shown([record(second_window=0)], files([longer])) == []


def test_patterns_and_dense(files: Callable[..., Path]) -> None:
    dense = "LLaMA-2-7B,dense,unstructured,0,wikitext2_ppl,2048,5.47,S"
    pattern = WANDA.replace("unstructured", "2:4").replace("6.93", "12.1")
    folder = files([dense, pattern])
    assert shown([record(method="dense", sparsity=0.6)], folder)[0][3] == 5.47
    assert shown([record(pattern="2:4", sparsity=None)], folder)[0][3] == 12.1


def test_every_source_of_a_cell_is_a_row(files: Callable[..., Path]) -> None:
    other = WANDA.replace("6.93", "7.26").replace("somebody", "another")
    assert [row[3] for row in shown([record()], files([WANDA, other]))] == [6.93, 7.26]


def test_a_filled_in_line_of_the_paper_is_shown(files: Callable[..., Path]) -> None:
    line = "LLaMA-2-7B,admm-grad,2:4,0.5,wikitext2_ppl,4096,9.9,the paper Table 9"
    ours = record(method="admm-grad", pattern="2:4")
    assert shown([ours], files([WANDA])) == []
    assert shown([ours], files([WANDA], [line])) == [("wikitext2_ppl", 4096, 6.5, 9.9)]


def test_zero_shot_on_whole_splits_only(files: Callable[..., Path]) -> None:
    line = "LLaMA-2-7B,wanda,unstructured,0.5,hellaswag_acc,0,0.52,S"
    ours = record(limit=0)
    del ours["parameters"]["windows"], ours["parameters"]["evaluation"]
    ours["metrics"] = {
        name: {"value": value, "unit": "1"}
        for name, value in (("hellaswag_acc", 0.51), ("hellaswag_acc_stderr", 0.01))
    }
    assert shown([ours], files([line])) == [("hellaswag_acc", 0, 0.51, 0.52)]
    ours["parameters"]["limit"] = 100
    assert shown([ours], files([line])) == []


def test_seconds_only_from_the_same_gpu(files: Callable[..., Path]) -> None:
    line = "LLaMA-2-7B,wanda,unstructured,0.5,prune_seconds_v100,2048,214,S"
    assert shown([record()], files([line])) == []
    ours = record() | {"device": "Tesla V100-SXM2-32GB"}
    assert shown([ours], files([line])) == [("prune_seconds_v100", 2048, 300.0, 214.0)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("LLaMA-2-7B,wanda,unstructured,0.5,wikitext2_ppl,2048,6.93", ("7 values",)),
        (WANDA + ",more", ("9 values",)),
        (WANDA.replace("wanda", ""), ("7 values",)),
        (WANDA.replace("6.93", "about 7"), ("value 'about 7'",)),
        (WANDA.replace("6.93", "nan"), ("value 'nan'",)),
        (WANDA.replace("0.5", "50"), ("sparsity 50",)),
        (WANDA.replace("2048", "20.5"), ("window 20.5",)),
        (WANDA.replace("unstructured", "4:2"), ("pattern '4:2'",)),
    ],
)
def test_a_malformed_line_is_named(
    files: Callable[..., Path], one_line_error: Callable, line: str, words: tuple[str, ...]
) -> None:
    good = WANDA.replace("0.5", "0.6")
    with one_line_error(RecordError, "paper.csv line 3", *words):
        read_published(files([], [good, line]))


def test_files_must_be_whole(files: Callable[..., Path], one_line_error: Callable) -> None:
    folder = files([WANDA, WANDA])
    with one_line_error(RecordError, "published.csv line 3", "delete one"):
        read_published(folder)
    (folder / "published.csv").write_text("model,value\n", encoding="utf-8")
    with one_line_error(RecordError, "published.csv line 1", HEAD):
        read_published(folder)
    (folder / "published.csv").unlink()
    with one_line_error(RecordError, "published.csv", "git"):
        read_published(folder)


def test_the_committed_files() -> None:
    figures = read_published()
    assert (
        Published(
            *("LLaMA-2-13B", "admm-grad", "2:4", 0.5, "wikitext2_ppl", 4096, 7.78),
            "MaskLLM (NeurIPS 2024) Table 13 (as ADMM-Iter)",
        )
        in figures
    )
    lines = sum(
        len((root() / "results" / "published" / name).read_text(encoding="utf-8").splitlines()) - 1
        for name in ("published.csv", "paper.csv")
    )
    assert len(figures) == lines
