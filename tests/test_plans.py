"""Plans t4 and paper, whose models are not here: complete, and run on a stand-in."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from helpers import corpora
from helpers.assets import embedded_model_folder
from helpers.errors import AssetError, RunError
from helpers.machine.estimate import SHAPES
from helpers.paths import notebooks_dir, root
from helpers.records import read_record
from helpers.results.published import MODEL_NAMES, published_table, read_published
from helpers.results.tables import perplexity_table, write_tables
from helpers.runner.plan import Run, read_notebook, read_plan

PRUNE, ZERO_SHOT = "04_prune_model", "05_zero_shot"
PAPER_MODELS = {
    "llama-7b": ("huggyllama/llama-7b", 0),  # takes 2048 tokens
    "llama-2-7b": ("meta-llama/Llama-2-7b-hf", 4096),
    "llama-2-13b": ("meta-llama/Llama-2-13b-hf", 4096),
    "llama-2-70b": ("meta-llama/Llama-2-70b-hf", 4096),
}
METHODS = ("magnitude", "wanda", "sparsegpt", "admm1", "admm-grad")
TARGETS = {
    "50": ("unstructured", 0.5),
    "60": ("unstructured", 0.6),
    "70": ("unstructured", 0.7),
    "80": ("unstructured", 0.8),
    "2of4": ("2:4", 0.5),
    "4of8": ("4:8", 0.5),
}
TASKS = ["boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"]

needs_zero_shot = pytest.mark.skipif(
    not (notebooks_dir() / f"{ZERO_SHOT}.ipynb").is_file(), reason="there is no notebook 05"
)


def by_name(plan: str, notebook: str) -> dict[str, Run]:
    return {run.name: run for run in read_plan(plan) if run.notebook == notebook}


# --- what the plans ask for ----------------------------------------------------------------


def test_the_paper_grid_is_complete() -> None:
    runs = by_name("paper", PRUNE)
    expected = {}
    for short, (model, second) in PAPER_MODELS.items():
        expected[f"{short}-dense"] = (model, second, "dense", "unstructured", 0.0)
        for method in METHODS:
            for suffix, target in TARGETS.items():
                expected[f"{short}-{method}-{suffix}"] = (model, second, method, *target)
    for short in ("llama-7b", "llama-2-7b"):
        for method in set(METHODS) - {"magnitude"}:
            for seed in (1, 2):
                cell = (*PAPER_MODELS[short], method, *TARGETS["60"])
                expected[f"{short}-{method}-60-seed{seed}"] = cell
                assert runs[f"{short}-{method}-60-seed{seed}"].effective["calibration_seed"] == seed
    asked = {}
    for name, run in runs.items():
        given = run.effective
        keys = ("model", "second_window", "method", "pattern", "sparsity")
        asked[name] = tuple(given[key] for key in keys)
        protocol = (given["calibration"], given["sequences"], given["length"])
        assert protocol == ("c4", 128, 2048), name
        text = (given["evaluation"], given["window"], given["windows"], given["options"])
        assert text == ("wikitext2", 2048, 0, {}), name
    assert asked == expected and len(expected) == 4 * 31 + 2 * 8


@needs_zero_shot
def test_zero_shot_runs_of_the_paper() -> None:
    runs = by_name("paper", ZERO_SHOT)
    suffixes = ("dense", "wanda-50", "sparsegpt-50", "admm-grad-50")
    assert set(runs) == {f"{short}-{end}" for short in PAPER_MODELS for end in suffixes}
    for run in runs.values():
        given = run.effective
        assert (given["tasks"], given["limit"], given["source"]) == (TASKS, 0, "hub")
        assert (given["calibration"], given["sequences"], given["length"]) == ("c4", 128, 2048)


@needs_zero_shot
def test_zero_shot_runs_of_t4() -> None:
    runs = by_name("t4", ZERO_SHOT)
    short, ends = "tinyllama-1.1b", ("dense", "wanda-50", "sparsegpt-50", "admm-grad-50")
    assert set(runs) == {f"{short}-{end}" for end in ends}
    for run in runs.values():
        assert (run.effective["limit"], run.effective["source"]) == (100, "embedded")


@pytest.mark.parametrize("plan", ["t4", "paper"])
def test_models_are_pinned_and_known(plan: str) -> None:
    """One commit a model, and the numbers to estimate it by."""
    commits: dict[str, set[str]] = {}
    for run in read_plan(plan):
        if "revision" in run.effective:
            commits.setdefault(run.effective["model"], set()).add(run.effective["revision"])
    assert set(commits) <= set(SHAPES) and len(commits) >= 2
    for found in commits.values():
        (commit,) = found
        assert len(commit) == 40 and int(commit, 16) >= 0
    if plan == "paper":
        assert set(commits) <= set(MODEL_NAMES)


# --- the same run files on a stand-in ------------------------------------------------------


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama as `save_pretrained` leaves one, in safetensors."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(embedded_model_folder(), local_files_only=True)
        corpora.c4_documents()
    except AssetError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Files as the hub has them, of the embedded text, found instead of downloaded."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "hub"
    for text in corpora.HUB_TEXTS.values():
        for file in text.files.values():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / corpora.C4.files["train"], "wt", encoding="utf-8") as stream:
        for document in corpora.c4_documents()[:40]:
            row = {"text": document, "timestamp": "2019-04-25T12:57:54Z", "url": ""}
            stream.write(json.dumps(row) + "\n")
    lines = [line + "\n" for line in corpora.wiki_articles()[0].split("\n")]
    for file in corpora.WIKITEXT2.files.values():
        pyarrow.parquet.write_table(pyarrow.table({"text": lines}), folder / file)
    monkeypatch.setattr(corpora, "_hub_file", lambda text, split: folder / text.files[split])
    # what `datasets` converts must not go to the cache of this machine
    monkeypatch.setattr(corpora, "cache_dir", lambda: tmp_path / "cache")
    return folder


def execute(run: Run, changes: dict[str, Any], path: Path) -> dict[str, Any]:
    """The record that the run's notebook writes with some parameters replaced, in this process."""
    matplotlib.use("Agg")
    given = run.effective | changes | {"record_path": str(path), "preset": ""}
    assert set(given) == set(run.defaults), "a change may only replace what the run file could"
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in read_notebook(run.source_path)["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] != "code" or "colab-setup" in tags:
            continue
        exec(compile("".join(cell["source"]), run.notebook, "exec"), names)
        if "parameters" in tags:
            names |= given
    return read_record(path)


def smaller(stand_in: Path) -> dict[str, Any]:
    """What a stand-in needs instead of the run file's own."""
    return {
        "model": str(stand_in),
        "revision": "",
        "dtype": "float32",
        "device": "cpu",
        "sequences": 4,
        "length": 64,
    }


@pytest.mark.parametrize(
    ("plan", "name"),
    [("t4", "tinyllama-1.1b-wanda-2of4"), ("paper", "llama-2-7b-wanda-2of4")],
)
def test_a_cell_of_the_main_table(
    plan: str, name: str, stand_in: Path, hub: Path, tmp_path: Path
) -> None:
    run = by_name(plan, PRUNE)[name]
    second = 128 if run.effective["second_window"] else 0
    changes = smaller(stand_in) | {"window": 64, "second_window": second}
    record = execute(run, changes, tmp_path / f"{run.id}.json")
    metrics = record["metrics"]
    assert metrics["sparsity"]["value"] == 0.5 and len(record["layers"]) == 14
    assert 1e4 < metrics["perplexity"]["value"] < 1e6, "random weights guess among 49 152 tokens"
    assert ("perplexity_128" in metrics) == (plan == "paper")
    assert record["data"]["calibration"]["dataset"] == "allenai/c4"
    assert record["data"]["evaluation"]["dataset"] == "Salesforce/wikitext"
    assert record["model"]["name"] == "tiny-llama" and len(record["model"]["sha256"]) == 64
    check_tables(run, record, tmp_path)


def check_tables(run: Run, record: dict[str, Any], folder: Path) -> None:
    """The record gives the tables, and, as if it were the real model, the published rows."""
    assert perplexity_table([record])["2:4"].to_list() == [record["metrics"]["perplexity"]["value"]]
    written = write_tables([record], folder / "tables")
    assert {"perplexity.md", "cost.md"} <= {path.name for path in written}
    assert published_table([record]) is None, "a stand-in is in no publication"
    windows = {key: run.effective[key] for key in ("model", "window", "second_window")}
    frame = published_table([record | {"parameters": record["parameters"] | windows}])
    expected = [
        figure.value
        for figure in read_published()
        if (figure.model, figure.method, figure.pattern) == ("LLaMA-2-7B", "wanda", "2:4")
    ]
    assert ([] if frame is None else frame["published"].to_list()) == (
        expected if run.plan == "paper" else []
    )


@needs_zero_shot
@pytest.mark.parametrize(
    ("plan", "name"),
    [("t4", "tinyllama-1.1b-dense"), ("paper", "llama-7b-wanda-50")],
)
def test_a_zero_shot_cell(plan: str, name: str, stand_in: Path, hub: Path, tmp_path: Path) -> None:
    """The rows of the paper's plan come from the embedded splits, which are the hub's."""
    run = by_name(plan, ZERO_SHOT)[name]
    changes = smaller(stand_in) | {"tasks": ["rte", "openbookqa"], "limit": 4}
    record = execute(run, changes | {"source": "embedded"}, tmp_path / f"{run.id}.json")
    metrics = record["metrics"]
    assert 0 <= metrics["openbookqa_acc"]["value"] <= 1 and "openbookqa_acc_norm" in metrics
    assert len(record["series"]["zero_shot"]["rte"]["acc"]) == 4
    assert "zero_shot.md" in {path.name for path in write_tables([record], tmp_path / "tables")}
    parameters = record["parameters"] | {"model": "huggyllama/llama-7b"}
    assert published_table([record | {"parameters": parameters}]) is None, "four items are no split"


def test_a_misspelt_parameter_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_line_error: Callable
) -> None:
    """What the committed plans are checked by does refuse."""
    source = root() / "runs" / "paper" / PRUNE / "llama-2-7b-dense.yaml"
    copy = tmp_path / "paper" / PRUNE / source.name
    copy.parent.mkdir(parents=True)
    text = source.read_text(encoding="utf-8")
    copy.write_text(text.replace("second_window", "second_windows"), encoding="utf-8")
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path))
    with one_line_error(RunError, "llama-2-7b-dense.yaml", "second_window"):
        read_plan("paper")
