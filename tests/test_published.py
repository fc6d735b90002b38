"""Published numbers: read strictly, and shown only beside the same cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.errors import RecordError
from helpers.paths import root
from helpers.results.published import COLUMNS, FILES, Published, published_table, read_published

HEAD = ",".join(COLUMNS)
WANDA = "LLaMA-2-7B,wanda,unstructured,0.5,wikitext2_ppl,2048,6.93,somebody's Table 1"


def record(**changes: Any) -> dict[str, Any]:
    """A record of notebook 04 on LLaMA-2-7B, as far as published_table looks."""
    parameters = {"model": "meta-llama/Llama-2-7b-hf", "method": "wanda", "options": {},
                  "sparsity": 0.5, "pattern": "unstructured",
                  "calibration": "c4", "sequences": 128, "length": 2048,
                  "evaluation": "wikitext2", "window": 2048, "second_window": 4096,
                  "windows": 0}  # fmt: skip
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


def test_a_match_is_shown_for_every_source(files: Callable[..., Path]) -> None:
    other = WANDA.replace("6.93", "7.26").replace("somebody", "another")
    found = published_table([record()], read_published(files([WANDA, other])))
    cell = ["LLaMA-2-7B", "wanda", "unstructured", 0.5, "wikitext2_ppl", 2048, "c4 128 x 2048", 7.0]
    assert found.to_numpy().tolist() == [
        [*cell, 6.93, "somebody's Table 1"], [*cell, 7.26, "another's Table 1"]
    ]  # fmt: skip
    assert list(found.columns[6:]) == ["calibration", "here", "published", "source"]


@pytest.mark.parametrize(
    "changes",
    [{"model": "huggyllama/llama-7b"}, {"model": "embedded"}, {"method": "sparsegpt"},
     {"sparsity": 0.6}, {"pattern": "2:4"}, {"window": 1024}, {"windows": 12},
     {"evaluation": "embedded"}, {"options": {"budget": "matrix"}}],
    ids=str,
)  # fmt: skip
def test_another_cell_is_not_shown(files: Callable[..., Path], changes: dict) -> None:
    assert published_table([record(**changes)], read_published(files([WANDA]))) is None


@pytest.mark.parametrize(
    ("line", "changes", "expected"),
    [
        # the second window has its own value
        (WANDA.replace("2048,6.93", "4096,6.4"), {}, ("wikitext2_ppl", 4096, 6.5, 6.4)),
        (WANDA.replace("2048,6.93", "4096,6.4"), {"second_window": 0}, None),
        # the dense model is one cell whatever the run file says of sparsity
        ("LLaMA-2-7B,dense,unstructured,0,wikitext2_ppl,2048,5.47,S",
         {"method": "dense", "sparsity": 0.6}, ("wikitext2_ppl", 2048, 7.0, 5.47)),
        (WANDA.replace("unstructured", "2:4"), {"pattern": "2:4", "sparsity": None},
         ("wikitext2_ppl", 2048, 7.0, 6.93)),
        # zero-shot on whole splits only
        ("LLaMA-2-7B,wanda,unstructured,0.5,hellaswag_acc,0,0.52,S", {"limit": 0},
         ("hellaswag_acc", 0, 0.51, 0.52)),
        ("LLaMA-2-7B,wanda,unstructured,0.5,hellaswag_acc,0,0.52,S", {"limit": 100}, None),
    ],
)  # fmt: skip
def test_what_is_about_the_same_thing(
    files: Callable[..., Path], line: str, changes: dict, expected: tuple | None
) -> None:
    ours = record(**changes)
    ours["metrics"]["hellaswag_acc"] = {"value": 0.51, "unit": "1"}
    assert shown([ours], files([], [line])) == ([expected] if expected else [])


def test_seconds_only_from_the_same_gpu(files: Callable[..., Path]) -> None:
    line = "LLaMA-2-7B,wanda,unstructured,0.5,prune_seconds_v100,2048,214,S"
    assert shown([record()], files([line])) == []
    ours = record() | {"device": "Tesla V100-SXM2-32GB"}
    assert shown([ours], files([line])) == [("prune_seconds_v100", 2048, 300.0, 214.0)]


@pytest.mark.parametrize(
    "line",
    [WANDA.removesuffix(",somebody's Table 1"), WANDA + ",more", WANDA.replace("wanda", ""),
     WANDA.replace("6.93", "about 7"), WANDA.replace("6.93", "nan"), WANDA.replace("0.5", "50"),
     WANDA.replace("2048", "20.5"), WANDA.replace("unstructured", "4:2")],
)  # fmt: skip
def test_a_malformed_line_is_named(
    files: Callable[..., Path], one_line_error: Callable, line: str
) -> None:
    with one_line_error(RecordError, f"paper.csv line 3 is {line!r}", "a whole window"):
        read_published(files([], [WANDA.replace("0.5", "0.6"), line]))


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
    found = read_published()
    where = ("LLaMA-2-13B", "admm-grad", "2:4", 0.5, "wikitext2_ppl", 4096)
    assert Published(*where, 7.78, "MaskLLM (NeurIPS 2024) Table 13 (as ADMM-Iter)") in found
    folder = root() / "results" / "published"
    texts = [(folder / name).read_text(encoding="utf-8") for name in FILES]
    assert len(found) == sum(len(text.splitlines()) - 1 for text in texts)
