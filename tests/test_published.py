"""Published numbers: read strictly, and shown only beside the same cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handmade import pruned

from helpers.errors import FileError
from helpers.paths import root
from helpers.report import write_published
from helpers.report.published import (
    COLUMNS,
    FILES,
    Published,
    published_table,
    ratio_table,
    read_published,
)

HEAD = ",".join(COLUMNS)
WANDA = "LLaMA-2-7B,wanda,unstructured,0.5,wikitext2_ppl,2048,6.93,somebody's Table 1"
WIDE = WANDA.replace("2048,6.93", "4096,6.4")
DENSE = "LLaMA-2-7B,dense,unstructured,0,wikitext2_ppl,2048,5.47,S"
PATTERN = WANDA.replace("unstructured", "2:4")
SCORE = "LLaMA-2-7B,wanda,unstructured,0.5,hellaswag_acc,0,0.52,S"
SECONDS = "LLaMA-2-7B,wanda,unstructured,0.5,prune_seconds_v100,2048,214,S"


def record(device: str = "Some GPU", **changes: Any) -> dict[str, Any]:
    """A record on LLaMA-2-7B, as far as published_table looks."""
    parameters = {"model": "meta-llama/Llama-2-7b-hf", "method": "wanda", "options": {},
                  "sparsity": 0.5, "pattern": "unstructured",
                  "calibration": "c4", "sequences": 128, "length": 2048,
                  "evaluation": "wikitext2", "window": 2048, "second_window": 4096,
                  "windows": 0}  # fmt: skip
    values = {"perplexity": 7.0, "perplexity_4096": 6.5, "prune_seconds": 300.0}
    values["hellaswag_acc"] = 0.51
    return {
        "parameters": parameters | changes,
        "metrics": {name: {"value": value, "unit": "1"} for name, value in values.items()},
        "data": {"calibration": {"name": "c4"}},
        "device": device,
    }


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    """Write published.csv and paper.csv with these lines, and return their folder."""

    def write(published: list[str], paper: list[str]) -> Path:
        for name, lines in (("published.csv", published), ("paper.csv", paper)):
            (tmp_path / name).write_text("\n".join([HEAD, *lines]) + "\n", encoding="utf-8")
        return tmp_path

    return write


def test_a_match_is_shown_for_every_source(files: Callable[..., Path]) -> None:
    other = WANDA.replace("6.93", "7.26").replace("somebody", "another")
    found = published_table([record()], read_published(files([WANDA], [other])))
    cell = ["LLaMA-2-7B", "wanda", "unstructured", 0.5, "wikitext2_ppl", 2048, "c4 128 x 2048", 7.0]
    assert found.to_numpy().tolist() == [
        [*cell, 6.93, "somebody's Table 1"], [*cell, 7.26, "another's Table 1"]
    ]  # fmt: skip
    assert list(found.columns[6:]) == ["calibration", "here", "published", "source"]


@pytest.mark.parametrize(
    ("line", "changes", "here"),
    [
        (WIDE, {}, 6.5),  # the second window has its own value
        (WIDE, {"second_window": 0}, None),
        # the dense model is one cell whatever the run file says of sparsity
        (DENSE, {"method": "dense", "sparsity": 0.6}, 7.0),
        (PATTERN, {"pattern": "2:4", "sparsity": None}, 7.0),
        (SCORE, {"limit": 0}, 0.51),  # zero-shot on whole splits only
        (SCORE, {"limit": 100}, None),
        (SECONDS, {"device": "Tesla V100-SXM2-32GB"}, 300.0),  # only from the same GPU
        (SECONDS, {}, None),
        (WANDA, {"model": "huggyllama/llama-7b"}, None),
        (WANDA, {"model": "embedded"}, None),
        (WANDA, {"method": "sparsegpt"}, None),
        (WANDA, {"sparsity": 0.6}, None),
        (WANDA, {"pattern": "2:4"}, None),
        (WANDA, {"window": 1024}, None),
        (WANDA, {"windows": 12}, None),
        (WANDA, {"evaluation": "embedded"}, None),
        (WANDA, {"options": {"budget": "matrix"}}, None),
    ],
)
def test_a_number_is_shown_beside_its_own_cell_only(
    files: Callable[..., Path], line: str, changes: dict, here: float | None
) -> None:
    found = published_table([record(**changes)], read_published(files([], [line])))
    cells = [] if found is None else found[["metric", "window", "here", "published"]].to_numpy()
    _, _, _, _, metric, window, value, _ = line.split(",")
    expected = [] if here is None else [[metric, int(window), here, float(value)]]
    assert [list(cell) for cell in cells] == expected


def test_ratios_are_of_one_cell_and_one_source(files: Callable[..., Path], tmp_path: Path) -> None:
    ppl = "wikitext2_ppl,2048"
    theirs = [f"wanda,unstructured,0.5,{ppl},8.0,A", f"alps,unstructured,0.5,{ppl},6.0,A",
              f"sparsegpt,unstructured,0.5,{ppl},5.0,B", f"alps,2:4,0.5,{ppl},9.0,A",
              f"sparsegpt,2:4,0.5,{ppl},10.0,A", f"wanda,4:8,0.5,{ppl},9.0,A",
              "wanda,unstructured,0.5,prune_seconds_v100,2048,1.0,A"]  # fmt: skip
    published = read_published(files([f"LLaMA-2-7B,{line}" for line in theirs], []))
    ours = [pruned("sparsegpt", "50 %", 40.0), pruned("wanda", "50 %", 50.0)]
    ours += [pruned("admm-grad", "50 %", 29.0 + 2 * seed, seed) for seed in (0, 1)]
    ours += [pruned("magnitude", "50 %", 900.0), pruned("dense", "0 %", 10.0)]
    ours += [pruned("admm-grad", "2:4", 60.0), pruned("wanda", "2:4", 80.0)]
    found = ratio_table(ours, published).reset_index()
    assert found.astype(object).where(found.notna(), None).to_numpy().tolist() == [
        ["50 %", "wanda", "here", 1.25, None, "here"],
        ["50 %", "admm-grad", "here", 0.75, 0.6, "here"],  # the mean of 29 and 31
        ["50 %", "alps", "LLaMA-2-7B, window 2048", None, 0.75, "A"],  # SparseGPT's is of B
        ["2:4", "admm-grad", "here", None, 0.75, "here"],
        ["2:4", "alps", "LLaMA-2-7B, window 2048", 0.9, None, "A"],
    ]
    assert list(found.columns[3:5]) == ["/ sparsegpt", "/ wanda"]
    assert ratio_table(ours[2:6], published) is None and ratio_table([], published) is None
    (path,) = write_published(ours, tmp_path)
    text = path.read_text(encoding="utf-8")
    assert (
        path.name == "published_ratios.md" and "**The models, texts and windows differ.**" in text
    )
    assert "| 50 % | admm-grad | here | 0.750 | 0.600 | here |" in text
    # of the committed files, where the publication has another name for the method
    assert "| 2:4 | admm-grad | LLaMA-2-13B, window 4096 | 0.935 | 0.941 |" in text


@pytest.mark.parametrize(
    "line",
    [WANDA.removesuffix(",somebody's Table 1"), WANDA + ",more", WANDA.replace("wanda", ""),
     WANDA.replace("6.93", "about 7"), WANDA.replace("6.93", "nan"), WANDA.replace("0.5", "50"),
     WANDA.replace("2048", "20.5"), WANDA.replace("unstructured", "4:2")],
)  # fmt: skip
def test_a_malformed_line_is_named(
    files: Callable[..., Path], one_line_error: Callable, line: str
) -> None:
    with one_line_error(FileError, f"paper.csv line 3 is {line!r}", "a whole window"):
        read_published(files([], [WANDA.replace("0.5", "0.6"), line]))


def test_files_must_be_whole(files: Callable[..., Path], one_line_error: Callable) -> None:
    folder = files([WANDA, WANDA], [])
    with one_line_error(FileError, "published.csv line 3", "delete one"):
        read_published(folder)
    (folder / "published.csv").write_text("model,value\n", encoding="utf-8")
    with one_line_error(FileError, "published.csv line 1", HEAD):
        read_published(folder)
    (folder / "published.csv").unlink()
    with one_line_error(FileError, "published.csv", "git"):
        read_published(folder)


def test_the_committed_files() -> None:
    found = read_published()
    where = ("LLaMA-2-13B", "admm-grad", "2:4", 0.5, "wikitext2_ppl", 4096)
    assert Published(*where, 7.78, "MaskLLM (NeurIPS 2024) Table 13 (as ADMM-Iter)") in found
    folder = root() / "helpers" / "report" / "papers"
    texts = [(folder / name).read_text(encoding="utf-8") for name in FILES]
    assert len(found) == sum(len(text.splitlines()) - 1 for text in texts)
