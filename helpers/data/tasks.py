"""Zero-shot tasks: their rows, and fixed subsets of items.

The paper's seven tasks, and PIQA, SciQ and LAMBADA, which a small model can do. Names, prompts and
metrics are lm-eval's: a row holds the fields that lm-eval's task definition reads, and no question
is worded here. Each task is the whole labelled split that lm-eval scores (of SciQ,
the validation split). ARC, OpenBookQA and BoolQ are stored as prompts, whose template is stripped
here. LAMBADA has no choices: its answer is the last word of a passage, and any other is wrong.
"""

import gzip
import importlib.metadata
import json
import math
import random
import statistics
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from helpers.data.assets import ASSETS, fetch_asset

# ids from here on repeat the items, to be scored in another way
DUPLICATES_FROM = 1_000_000


class Task(NamedTuple):
    """A task: items in its labelled split, accuracy of guessing, and lm-eval's definition of it."""

    size: int
    chance: float  # 1 / choices; the few ARC items with 3 or 5 choices do not change it; 0 of words
    split: str
    folder: str  # of the definition


TASK_TABLE = {
    "boolq": Task(3270, 1 / 2, "validation", "super_glue/boolq"),
    "rte": Task(277, 1 / 2, "validation", "glue/rte"),
    "hellaswag": Task(10042, 1 / 4, "validation", "hellaswag"),
    "winogrande": Task(1267, 1 / 2, "validation", "winogrande"),
    "arc_easy": Task(2376, 1 / 4, "test", "arc"),
    "arc_challenge": Task(1172, 1 / 4, "test", "arc"),
    "openbookqa": Task(500, 1 / 4, "test", "openbookqa"),
    # not in the paper
    "piqa": Task(1838, 1 / 2, "validation", "piqa"),
    "sciq": Task(1000, 1 / 4, "validation", "sciq"),  # lm-eval's: "test"
    "lambada_openai": Task(5153, 0.0, "test", "lambada"),
}
TASKS = tuple(TASK_TABLE)


def task_rows(task: str) -> list[dict[str, Any]]:
    """All items of a task's labelled split, with the fields that lm-eval's definition reads.

    They are in the order of the original split. BoolQ is SuperGLUE's, with the page's title before
    the passage. The choices of ARC and OpenBookQA are lettered A, B, C … here; lm-eval uses the
    letters only to find the right choice. Raises FileError.
    """
    path = fetch_asset("tasks") / ASSETS["tasks"].members[task][0]
    if path.suffix == ".arrow":
        import datasets  # here, because it loads slowly

        # an arrow file is a table in memory format: no dataset script and no cache is involved
        return datasets.Dataset.from_file(str(path)).to_list()
    return [_row(task, doc) for doc in _stored_prompts(path)]


def choose_items(
    task_size: int, limit: int | None, seed: int, part: int = 0
) -> list[int]:
    """Indices of the items to score, sorted: `limit` out of `task_size`, or all if it is None.

    part: which `limit` items of the order that the seed draws. Parts share no item until the task
    has no more; then the order begins again.
    """
    # The order depends on size and seed alone, so every model gets the same items, their scores can
    # be paired, and a smaller limit takes a part of what a larger one takes.
    order = list(range(task_size))
    # a generator of its own, so that neither lm-eval's seeds nor a notebook's can change the items
    random.Random(seed).shuffle(order)
    size = limit or task_size
    return sorted(order[(part * size + k) % task_size] for k in range(size))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of 2 or more values and its standard error, as in lm-eval."""
    # sample deviation (over n − 1) / √n; for answers of 0 and 1 with mean a, sqrt(a(1 − a)/(n − 1))
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), error


def tasks_identity() -> dict[str, Any]:
    """The tasks' entry in a record: the wheel with their rows, and lm-eval's version."""
    identity = ASSETS["tasks"].identity()
    identity["harness"] = f"lm-eval {importlib.metadata.version('lm-eval')}"
    return identity


def _stored_prompts(path: Path) -> list[dict]:
    """The document of each item, once; the file has a line for each of its choices."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        # ARC has one line a choice, with the same document in each
        docs = {request["doc_id"]: request["doc"] for request in map(json.loads, lines)}
    return [doc for index, doc in docs.items() if index < DUPLICATES_FROM]


def _row(task: str, doc: dict) -> dict[str, Any]:
    """The fields that lm-eval reads, from an item that is stored as a prompt."""
    if task == "lambada_openai":  # lm-eval itself takes off the last word
        return {"text": f"{doc['query']} {doc['choices'][0]}"}
    # the words that lm-eval's own template puts around a question
    text = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    if task == "boolq":
        # from the right: a passage may itself hold a line that begins like this
        passage, _, question = text.rpartition("\nQuestion: ")
        label = int(doc["choices"][doc["gold"]] == "yes")
        question = question.removesuffix("?")
        return {
            "passage": passage,
            "question": question,
            "label": label,
            "idx": doc["idx"],
        }
    choices = doc["choices"]
    letters = string.ascii_uppercase[: len(choices)]
    return {
        "question_stem" if task == "openbookqa" else "question": text,
        "choices": {"text": choices, "label": list(letters)},
        "answerKey": letters[doc["gold"]],
    }
