"""Rows of the tasks, subsets of items, and paired differences worked by hand."""

import json
from collections import Counter

import pytest

from helpers.data import tasks
from helpers.data.tasks import TASKS, choose_items, task_rows

# task → a field of its rows, and how often each value is there: a label where there is one
SPLITS = {
    "boolq": ("label", {0: 1237, 1: 2033}),
    "rte": ("label", {0: 146, 1: 131}),
    "hellaswag": ("label", {"0": 2515, "1": 2485, "2": 2584, "3": 2458}),
    "winogrande": ("answer", {"1": 628, "2": 639}),
    "arc_easy": ("answerKey", {"A": 596, "B": 585, "C": 633, "D": 561, "E": 1}),
    "arc_challenge": ("answerKey", {"A": 266, "B": 311, "C": 310, "D": 285}),
    "openbookqa": ("answerKey", {"A": 138, "B": 126, "C": 132, "D": 104}),
    "piqa": ("label", {0: 910, 1: 928}),
    "sciq": (
        "support",
        {False: 113, True: 887},
    ),  # items without and with a text to read
    "lambada_openai": ("text", {True: 5153}),
}
# task → an item, and the text of its right choice
ANSWERS = {
    "arc_challenge": (0, "Planetary days will become shorter."),
    "arc_easy": (1, "breathing mask"),
    "openbookqa": (0, "quit eating lunch out"),
}


@pytest.mark.parametrize("task", TASKS)
def test_whole_split_without_duplicates(task):
    key, labels = SPLITS[task]
    rows = task_rows(task)
    size = sum(labels.values())
    assert len(rows) == size == tasks.TASK_TABLE[task].size
    repeated = 2 if task == "lambada_openai" else 0  # two passages are there twice
    assert len({json.dumps(row, sort_keys=True) for row in rows}) == size - repeated
    found = [row[key] for row in rows]
    if key in ("support", "text"):
        found = map(bool, found)
    assert Counter(found) == labels


def test_boolq_is_superglues():
    rows = task_rows("boolq")
    assert [row["idx"] for row in rows] == list(range(3270))
    assert rows[0]["question"] == "does ethanol take more energy make that produces"
    for row in rows:  # lm-eval's template adds these
        assert not row["question"].endswith("?")
        assert "\n" not in row["question"]
        assert "\nQuestion: " not in row["passage"]


@pytest.mark.parametrize("task", ANSWERS)
def test_stored_prompts_lose_their_template(task):
    field = "question_stem" if task == "openbookqa" else "question"
    rows = task_rows(task)
    for row in rows:
        assert not row[field].startswith("Question:")
        assert not row[field].endswith("Answer:")
        assert row[field] == row[field].strip()
    item, text = ANSWERS[task]
    choices = rows[item]["choices"]
    right = choices["label"].index(rows[item]["answerKey"])
    assert choices["text"][right] == text


# --- subsets -------------------------------------------------------------------------------


def test_items_are_sorted_distinct_and_of_the_seed():
    items = choose_items(500, 100, 0)
    assert items == sorted(set(items)) != choose_items(500, 100, 1)
    assert len(items) == 100
    # committed records hold these: another draw would make them incomparable
    assert choose_items(500, 4, 0) == [130, 419, 431, 459]
    assert choose_items(277, None, 3) == choose_items(277, 277, 5) == list(range(277))
    assert set(choose_items(10042, 20, 2)) < set(choose_items(10042, 100, 2))


def test_parts_share_no_item_until_the_task_has_no_more():
    parts = [choose_items(500, 200, 0, part) for part in range(3)]
    assert [len(set(part)) for part in parts] == [200] * 3
    assert parts[0] == choose_items(500, 200, 0) and not set(parts[0]) & set(parts[1])
    # 100 items are new, and the order begins again with the first hundred of it
    new = set(range(500)) - {*parts[0], *parts[1]}
    assert new < set(parts[2])
    assert set(parts[2]) - new == set(choose_items(500, 100, 0))
    assert choose_items(277, None, 0, part=3) == list(range(277))
