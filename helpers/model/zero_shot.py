"""Zero-shot accuracy on the tasks of lm-eval, which scores them."""

import contextlib
import copy
import io
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers.data.corpora import check_tokenizer
from helpers.data.tasks import (
    TASK_TABLE,
    TASKS,
    choose_items,
    mean_and_error,
    task_rows,
)
from helpers.errors import BadParameter, NonFinite
from helpers.model.blocks import eval_mode
from helpers.model.models import check_model, device_of
from helpers.options import check_choice, check_whole

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskScore:
    """A model's answers to one task, item by item: 1 where its choice is the right one.

    The model's choice has the highest log-likelihood (`acc`), or the highest log-likelihood per
    character (`acc_norm`, None for a task without it). `answers` holds the choices of `acc`,
    indices into the item's choices. An item without choices, as LAMBADA's, is right where greedy
    decoding gives its answer; `answers` is then 0, and -1 elsewhere.
    """

    # Why acc_norm: log p of a choice is a sum over its tokens, each at most 0, so a long choice
    # loses to a short one whatever they say. lm-eval divides by characters, not tokens, so that
    # models with different tokenizers can be compared.

    task: str
    version: float | str  # of lm-eval's task definition
    size: int  # items in the whole split
    items: list[int]  # indices into the split
    acc: list[int]
    acc_norm: list[int] | None
    answers: list[int]
    scoring: str = "stock"  # lm-eval's own, or "as trees" (`helpers.model.token_trees`)

    @property
    def accuracy(self) -> float:
        """The share of items whose choice by `acc` is right."""
        return mean_and_error(self.acc)[0]

    @property
    def stderr(self) -> float:
        """The standard error of `accuracy`."""
        return mean_and_error(self.acc)[1]

    def to_dict(self) -> dict[str, Any]:
        """The score for a record: what stands there under the task's name, without `answers`."""
        fields = ("version", "size", "items", "acc", "acc_norm", "scoring")
        return {field: getattr(self, field) for field in fields}


def zero_shot(
    model: nn.Module,
    tokenizer: Any,
    *,
    tasks: Sequence[str] = TASKS,
    limit: int | None = None,
    seed: int = 0,
    part: int = 0,
    batch: int = 8,
) -> dict[str, TaskScore]:
    """Zero-shot accuracy on lm-eval's tasks, scored by lm-eval itself: task → score.

    Prompts, choices and metrics are lm-eval's. The same seed gives every model the same items. The
    model is used on its device, and its mode is restored. A text begins with the start token (BOS)
    where the tokenizer begins texts with one: lm-eval leaves that to the tokenizer. Tokens that
    texts begin with together run once where the model can do that (`helpers.model.token_trees`);
    each score's `scoring` says whether it did.

    Args:
        limit: items of each task; None for the whole split.
        seed: of the order from which items are taken.
        part: which `limit` items of that order: other parts ask other questions, as far as a task
            has them.
        batch: texts in one forward pass; as trees, 128 · batch tokens, and of up to 0.7 of them
            4 · vocabulary bytes of logits.

    Raises BadParameter, FileError (no data), NonFinite.
    """
    check_model(model)
    check_zero_shot(tasks=tasks, limit=limit, seed=seed, part=part, batch=batch)
    check_tokenizer(tokenizer)
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise BadParameter(
            "this tokenizer has neither a start nor an end token, one of which lm-eval puts before "
            "an empty context: set its eos_token"
        )
    items = {
        name: choose_items(TASK_TABLE[name].size, limit, seed, part) for name in tasks
    }
    messages = io.StringIO()  # and lm-eval's progress bars
    with contextlib.redirect_stderr(messages), eval_mode(model):
        import lm_eval

        from helpers.model.token_trees import TreeLM

        # a copy of the tokenizer, because lm-eval gives it a padding token
        harness = TreeLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch,
            # half precision would round the likelihoods of two choices to a tie
            softmax_dtype=torch.float32,
        )
        harness._device = device_of(model)  # a streamed model's own is "meta"
        # not simple_evaluate, which also runs git and other programs to describe the machine
        answer = lm_eval.evaluate(  # its samples hold each item's likelihoods
            lm=harness,
            task_dict=harness_tasks(items),
            bootstrap_iters=0,  # the standard errors come from the samples
        )
    lines = messages.getvalue().splitlines()
    if cut := [line for line in lines if "Truncating" in line]:
        LOG.warning("%d texts are too long for this model: %s", len(cut), cut[0])
    scoring = "as trees" if harness.trees else "stock"
    return {name: _task_score(name, items[name], answer, scoring) for name in tasks}


def check_zero_shot(
    *,
    tasks: Sequence[str],
    limit: int | None = None,
    seed: int = 0,
    part: int = 0,
    batch: int = 1,
) -> None:
    """Raise BadParameter if `zero_shot` cannot take these arguments, before a long pruning.

    A limit is 2 or more: one item has no standard error. A subset is never made smaller.
    """
    check_whole("seed", seed, least=0)
    check_whole("part", part, least=0)
    check_whole("batch", batch)
    if isinstance(tasks, str) or len(set(tasks)) != len(tasks) or not tasks:
        raise BadParameter(f"tasks {tasks!r}: give a list of tasks, each once")
    for name in tasks:
        task = TASK_TABLE[check_choice("task", name, TASKS)]
        if limit is not None and check_whole("limit", limit, least=2) > task.size:
            raise BadParameter(
                f"limit {limit} is more than the {task.size} items of {name}: lower it"
            )


def zero_shot_examples(tasks: Sequence[str] = TASKS) -> dict[str, list[str]]:
    """The first item of each task as lm-eval words it: a text for each choice, the right one first.

    In a text, " | " divides the context from the continuation whose likelihood counts.
    Raises what `zero_shot` raises for its tasks.
    """
    check_zero_shot(tasks=tasks)
    examples = {}
    with contextlib.redirect_stderr(io.StringIO()):
        first = {name: [0] for name in tasks}
        for name, task in harness_tasks(first).items():
            task.build_all_requests(limit=1)
            texts = [" | ".join(request.args) for request in task.instances]
            right = task.doc_to_text(task.eval_docs[0])
            # only WinoGrande's choices differ in what is given
            if not isinstance(right, int):
                right = task.doc_to_target(task.eval_docs[0]) if len(texts) > 1 else 0
            examples[name] = [texts.pop(int(right)), *texts]
    return examples


def zero_shot_metrics(
    scores: Mapping[str, TaskScore],
) -> dict[str, tuple[float, str, float]]:
    """Metrics for a record: each task's accuracies with standard errors, and the mean accuracy.

    Each is (value, unit, tolerance). The tolerance of an accuracy is one standard error, as a
    fraction of it: rounding may decide whether a weight at the mask's edge stays, and that may turn
    an item.
    """
    metrics = {}
    for name, score in scores.items():
        for key, right in (("acc", score.acc), ("acc_norm", score.acc_norm)):
            if right is None:
                continue
            value, error = mean_and_error(right)
            tolerance = max(0.02, error / value) if value else 0.02
            metrics[f"{name}_{key}"] = (value, "1", tolerance)
            metrics[f"{name}_{key}_stderr"] = (error, "1", 0.5)
    mean = statistics.fmean(score.accuracy for score in scores.values())
    # the mean is a sum over tasks divided by their number k, and the variances of independent
    # estimates add: sqrt(Σ stderr²)/k
    error = math.hypot(*(score.stderr for score in scores.values())) / len(scores)
    tolerance = error / mean if mean else 0.0
    metrics["mean_acc"] = (mean, "1", tolerance)
    return metrics


def harness_tasks(items: Mapping[str, Sequence[int]]) -> dict:
    """lm-eval's task objects by name, which hold the chosen items only."""
    import lm_eval.tasks

    definitions = Path(lm_eval.tasks.__file__).parent
    folders = sorted({str(definitions / TASK_TABLE[name].folder) for name in items})
    # looking through all of lm-eval's definitions would take seconds
    manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    group = [_override(name, chosen) for name, chosen in items.items()]
    # inside a group, because lm-eval ignores changes of a task at the top level
    loaded = manager.load([{"group": "zero-shot", "task": group}])["tasks"]
    return {name: loaded[name] for name in items}


def _override(name: str, items: Sequence[int]) -> dict:
    """Where a task's rows come from; nothing else of lm-eval's definition is changed."""
    import datasets

    rows = task_rows(name)
    split = TASK_TABLE[name].split
    chosen = datasets.Dataset.from_list([rows[index] for index in items])
    return {
        "task": name,
        "num_fewshot": 0,
        # None: lm-eval must not look for the other splits
        "training_split": None,
        "validation_split": None,
        "test_split": None,
        f"{split}_split": split,
        "custom_dataset": lambda **_: {split: chosen},
    }


def _task_score(name: str, items: list[int], results: dict, scoring: str) -> TaskScore:
    """A task's score from what `lm_eval.evaluate` returns."""
    samples = results["samples"][name]  # in the order of the items
    answers = []
    for item, sample in zip(items, samples, strict=True):
        likelihoods, written = zip(*sample["filtered_resps"], strict=True)
        if not all(map(math.isfinite, likelihoods)):
            raise NonFinite(
                f"{name} item {item} has a log likelihood that is not finite: check the model's "
                "weights, or evaluate in dtype float32"
            )
        if written == (False,):
            # there is one text alone, and it is not what the model would write
            answers.append(-1)
        else:
            # the first of equal ones, as lm-eval takes it
            answers.append(likelihoods.index(max(likelihoods)))
    acc, norm = (
        [int(sample[metric]) for sample in samples] if metric in samples[0] else None
        for metric in ("acc", "acc_norm")
    )
    version = results["versions"][name]
    size = TASK_TABLE[name].size
    return TaskScore(name, version, size, items, acc, norm, answers, scoring)
