"""Zero-shot scoring as trees of tokens, compared with lm-eval's own on the same items."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM

from benchmarks.timing import interleaved, ratio, summary
from helpers.data.tasks import TASK_TABLE, TASKS, choose_items
from helpers.model.models import device_of, load_model
from helpers.model.token_trees import PASS, TreeLM
from helpers.model.zero_shot import harness_tasks

TARGET = 0.45  # of ours over lm-eval's, all tasks together, with BATCH
EACH = 0.65  # the same of each task
ITEMS, BATCH, ROUNDS = 40, 8, 3
BATCHES = (2, 4, 8, 16, 32)  # tried on one thread and on two
FEW = 8  # items of a task for that


def measure(quick: bool = False) -> dict[str, Any]:
    """Time both on each task and on all tasks together, and compare their answers; a row for each.

    On one thread, as plans run it, and with batches of BATCH, where plans have 4. Then batches of
    several sizes, theirs among them, on one thread and on two.
    """
    model, tokenizer = load_model("tiny" if quick else "embedded")

    def scorer(kind: type[HFLM], batch: int = BATCH) -> HFLM:
        return kind(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch,
            softmax_dtype=torch.float32,
        )

    kinds = {"stock": scorer(HFLM), "ours": scorer(TreeLM)}
    batches = {batch: scorer(TreeLM, batch) for batch in BATCHES}
    threads = torch.get_num_threads()
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        torch.set_num_threads(1)
        texts = task_texts(4 if quick else ITEMS)
        rows = [measure_task(name, texts[name], kinds) for name in texts]
        some = sum(task_texts(4 if quick else FEW).values(), [])
        sizes = []
        for count in (1, 2):
            torch.set_num_threads(count)
            sizes += measure_batches(some, kinds["stock"], batches)
    torch.set_num_threads(threads)
    total = {
        name: np.sum([row["seconds"][name] for row in rows], axis=0).tolist()
        for name in kinds
    }
    rows.append({
        "task": "all",
        "items": sum(row["items"] for row in rows),
        "seconds": total,
        "difference": max(row["difference"] for row in rows),
        "turned": sum(row["turned"] for row in rows),
    })  # fmt: skip
    for row in rows:
        row["ratio"] = ratio(row["seconds"], "ours", "stock")
        row["seconds"] = {
            name: summary(values) for name, values in row["seconds"].items()
        }
    return {"rows": rows, "batches": sizes, "device": device_of(model).type}


def task_texts(count: int) -> dict[str, list[Any]]:
    """The requests of lm-eval for `count` items of each task."""
    items = {task: choose_items(TASK_TABLE[task].size, count, 0) for task in TASKS}
    texts = {}
    for name, task in harness_tasks(items).items():
        task.build_all_requests()
        texts[name] = task.instances
    return texts


def measure_batches(
    texts: list[Any], stock: HFLM, batches: dict[int, TreeLM]
) -> list[dict[str, Any]]:
    """A row for each batch size, all tasks together, over lm-eval's own with BATCH."""
    runs = {"stock": lambda: stock.loglikelihood(texts)}
    for batch, ours in batches.items():
        runs[batch] = lambda ours=ours: ours.loglikelihood(texts)
    seconds = interleaved(runs, 1, warm=False, device=stock.device)
    return [
        {
            "threads": torch.get_num_threads(),
            "batch": batch,
            "tokens": PASS * batch,
            "ratio": ratio(seconds, batch, "stock"),
        }
        for batch in batches
    ]


def measure_task(
    name: str, texts: list[Any], harness: dict[str, HFLM]
) -> dict[str, Any]:
    """Measure seconds by round, the largest difference of a log-likelihood, and turned items."""
    answers = {}

    def score(kind: str) -> None:
        answers[kind] = harness[kind].loglikelihood(texts)

    runs = {kind: lambda kind=kind: score(kind) for kind in harness}
    seconds = interleaved(runs, ROUNDS, warm=False, device=harness["stock"].device)
    pairs = zip(answers["ours"], answers["stock"], strict=True)
    ours = chosen(texts, answers["ours"])
    stock = chosen(texts, answers["stock"])
    return {
        "task": name,
        "items": len(ours),
        "seconds": seconds,
        "difference": max(abs(one - other) for (one, _), (other, _) in pairs),
        "turned": sum(ours[item] != stock[item] for item in ours),
    }


def chosen(
    texts: Sequence[Any], answers: list[tuple[float, bool]]
) -> dict[int, tuple[Any, ...]]:
    """By item: the likeliest choice, the likeliest by length, and whether each would be written.

    answers: of each text the log-likelihood, and whether the model would write it.
    """
    items: dict[int, list[tuple[float, float, bool]]] = {}
    for text, (value, written) in zip(texts, answers, strict=True):
        # the characters without the space in front
        items.setdefault(text.doc_id, []).append(
            (value, value / (len(text.args[1]) - 1), written)
        )
    columns = {item: tuple(zip(*rows, strict=True)) for item, rows in items.items()}
    return {
        item: (plain.index(max(plain)), by_length.index(max(by_length)), written)
        for item, (plain, by_length, written) in columns.items()
    }
