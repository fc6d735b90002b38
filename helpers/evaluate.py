"""What a model can do: perplexity over fixed windows, and zero-shot accuracy through lm-eval."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from helpers.capture import (
    Replay,
    check_length,
    check_tokens,
    eval_mode,
    forward,
    logits_of,
)
from helpers.device import attribute
from helpers.errors import AssetError, CalibrationTooShort, NonFinite, check_choice, check_whole
from helpers.models import WEIGHT_READER, find_blocks, opened
from helpers.paths import cache_dir
from helpers.tasks import (
    SOURCES,
    TASK_TABLE,
    TASKS,
    check_tasks,
    choose_items,
    mean_and_error,
    task_rows,
)

LOG = logging.getLogger(__name__)
POSITIONS = 128  # whose losses are computed together
LARGEST = 700.0  # exp of a larger mean loss is no longer a float


def perplexity(
    model: nn.Module,
    tokens: Tensor,
    *,
    length: int = 2048,
    limit: int | None = None,
    batch: int = 1,
) -> float:
    """exp of the mean negative log-likelihood of the next token, in windows that do not overlap.

    Each window of `length` tokens predicts its tokens 2 … length; the remainder of the text is
    left out. This is the papers' token perplexity, not lm-eval's word perplexity.

    Args: tokens, int64 (tokens,), see `evaluation_tokens`; length, tokens in a window; limit, use
    only the first `limit` windows, None for all; batch, windows in one forward pass. A model that
    is read block by block (`load_streamed`) goes block by block through all windows, whose
    activations are held: windows · length · width · (size of dtype) bytes.
    Raises BadParameter, CalibrationTooShort (less text than asked for), NonFinite.
    """
    windows = check_windows(model, tokens, length, limit)
    check_whole("batch", batch)
    with eval_mode(model):
        batches = _batches if getattr(model, WEIGHT_READER, None) is None else _streamed_batches
        parts = batches(model, windows, batch)
        total = sum(_negative_log_likelihood(logits, rows) for rows, logits in parts)
    mean = total / (windows.shape[0] * (length - 1))
    if not mean < LARGEST:
        raise NonFinite(
            f"the mean loss is {mean:g}, which has no perplexity: the model's logits are broken; "
            "evaluate in dtype float32"
        )
    return math.exp(mean)


def check_windows(model: nn.Module, tokens: Tensor, length: int, limit: int | None) -> Tensor:
    """The first `limit` windows (windows, length) of tokens (tokens,); None: all there are.

    Raises what `perplexity` raises for them, so that it can be known before a long pruning.
    """
    check_length(model, check_whole("length", length, least=2))
    if limit is not None:
        check_whole("limit", limit)
    check_tokens(model, tokens, dimensions=1)
    available = len(tokens) // length
    if available < (limit or 1):
        raise CalibrationTooShort(
            f"{len(tokens)} tokens hold {available} windows of {length}, not the {limit or 1} "
            "asked for: lower limit or length, or give more text"
        )
    wanted = limit or available
    return tokens[: wanted * length].view(wanted, length)


def _batches(model: nn.Module, windows: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows (batch, length) with their logits (batch, length, vocabulary)."""
    for rows in windows.split(batch):
        yield rows, forward(model, rows)


def _streamed_batches(
    model: nn.Module, windows: Tensor, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same, block by block for all windows: each is read twice, not once for each window."""
    whole = len(windows) - len(windows) % batch
    for part, size in ((windows[:whole], batch), (windows[whole:], len(windows) - whole)):
        if not len(part):
            continue
        replay = Replay(model, part, size)
        stream = replay.embed()
        for index in range(len(find_blocks(model))):
            with opened(model, index):
                replay.advance(index, stream)
        with opened(model):
            calls, size = replay.calls, replay.batch
            for rows, states in zip(part.split(size), stream.split(size), strict=True):
                yield rows, logits_of(model, rows, states, calls)


def _negative_log_likelihood(logits: Tensor, rows: Tensor) -> float:
    """Summed over the predicted tokens of rows (batch, length), in float32.

    A few positions at a time, since a copy of all logits would be the largest thing in memory.
    """
    targets = rows.to(logits.device)
    total = 0.0
    for start in range(0, rows.shape[1] - 1, POSITIONS):
        stop = min(start + POSITIONS, rows.shape[1] - 1)
        part, wanted = logits[:, start:stop].float(), targets[:, start + 1 : stop + 1]
        loss = nn.functional.cross_entropy(part.flatten(0, 1), wanted.flatten(), reduction="sum")
        total += loss.item()
    return total


@dataclass(frozen=True)
class TaskScore:
    """The score of a model on one task, item by item.

    `acc`: 1 where the most likely choice is the right one; `acc_norm`: the same with the log
    likelihood divided by the choice's length in characters (None for a task without it).
    """

    task: str
    version: float | str  # of lm-eval's task definition
    size: int  # items in the whole split
    items: list[int]  # indices into the split
    acc: list[int]
    acc_norm: list[int] | None

    @property
    def accuracy(self) -> float:
        """Fraction of the items that are right."""
        return mean_and_error(self.acc)[0]

    @property
    def stderr(self) -> float:
        """Standard error of `accuracy`, as lm-eval computes it."""
        return mean_and_error(self.acc)[1]

    @property
    def accuracy_norm(self) -> float | None:
        """Fraction of the items that are right by length-normalised likelihood."""
        return None if self.acc_norm is None else mean_and_error(self.acc_norm)[0]

    @property
    def stderr_norm(self) -> float | None:
        """Standard error of `accuracy_norm`."""
        return None if self.acc_norm is None else mean_and_error(self.acc_norm)[1]

    def to_dict(self) -> dict[str, Any]:
        """What a record keeps: all fields but the task's name, which is its key there."""
        fields = ("version", "size", "items", "acc", "acc_norm")
        return {field: getattr(self, field) for field in fields}


def zero_shot(
    model: nn.Module,
    tokenizer: Any,
    *,
    tasks: Sequence[str] = TASKS,
    limit: int | None = None,
    seed: int = 0,
    source: str = "embedded",
    batch: int = 8,
) -> dict[str, TaskScore]:
    """Zero-shot accuracy on lm-eval's tasks, scored by lm-eval itself: task → score.

    Prompts, choices and metrics are lm-eval's. A choice's likelihood is summed in float32, so that
    half precision does not round it to ties. The same seed gives every model the same items. The
    model is used where it lies; its mode and the random states are as before afterwards.

    Args: limit, items of each task, None for the whole split; seed, which items; source,
    "embedded" (pinned files, no network once cached) or "hub" (lm-eval's own datasets at a pinned
    revision); batch, requests in one forward pass, whose logits need 4 · batch · tokens ·
    vocabulary bytes, twice.
    Raises BadParameter, AssetError (no data, or another lm-eval), NonFinite.
    """
    names = check_zero_shot(tasks=tasks, limit=limit, seed=seed, source=source, batch=batch)
    items = {name: choose_items(TASK_TABLE[name].size, limit, seed) for name in names}
    with _harness(source), eval_mode(model):
        harness_tasks = _harness_tasks(names, source, items)
        answer, longest = _score(model, tokenizer, harness_tasks, source, items, batch)
    _warn_of_cuts(answer["samples"], tokenizer, longest)
    return {
        name: _task_score(name, answer["versions"][name], items[name], answer["samples"][name])
        for name in names
    }


def check_zero_shot(
    *, tasks: Sequence[str], limit: int | None, seed: int, source: str, batch: int
) -> list[str]:
    """The tasks as a list, if `zero_shot` can take these arguments; else BadParameter."""
    names = check_tasks(tasks, limit)
    check_whole("seed", seed, least=0)
    check_choice("source", source, SOURCES)
    check_whole("batch", batch)
    return names


def zero_shot_examples(
    tasks: Sequence[str] = TASKS, *, source: str = "embedded"
) -> dict[str, list[str]]:
    """The first item of each task as lm-eval words it: a text for each choice, the right one first.

    In a text, " | " divides what the model is given from what it is asked the likelihood of.
    Raises what `zero_shot` raises for its tasks and source, so that it can be known before a long
    pruning.
    """
    names = check_zero_shot(tasks=tasks, limit=None, seed=0, source=source, batch=1)
    first = {name: [0] for name in names}
    with _harness(source):
        return {name: _example(task) for name, task in _harness_tasks(names, source, first).items()}


def zero_shot_metrics(scores: Mapping[str, TaskScore]) -> dict[str, dict[str, Any]]:
    """A record's metrics: each task's accuracies with their standard errors, and the mean accuracy.

    An accuracy may differ by one standard error in a rerun, because a weight at a mask's edge can
    turn an item; that fraction is its tolerance.
    """
    metrics: dict[str, dict[str, Any]] = {}
    for name, score in scores.items():
        metrics |= _metric(f"{name}_acc", score.accuracy, score.stderr)
        if score.acc_norm is not None:
            metrics |= _metric(f"{name}_acc_norm", score.accuracy_norm, score.stderr_norm)
    mean = statistics.fmean(score.accuracy for score in scores.values())
    error = math.hypot(*(score.stderr for score in scores.values())) / len(scores)
    tolerance = error / mean if mean else 0.0
    return metrics | {"mean_acc": {"value": mean, "unit": "1", "tolerance": tolerance}}


def _metric(name: str, value: float, error: float) -> dict[str, dict[str, Any]]:
    """An accuracy and its standard error as two metrics."""
    tolerance = max(0.02, error / value) if value else 0.02
    return {
        name: {"value": value, "unit": "1", "tolerance": tolerance},
        f"{name}_stderr": {"value": error, "unit": "1", "tolerance": 0.5},
    }


@contextlib.contextmanager
def _harness(source: str) -> Iterator[None]:
    """lm-eval without its noise, without a network for embedded rows, and without traces."""
    import datasets
    import huggingface_hub.constants as hub

    logger = logging.getLogger("lm_eval")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_random_states_kept())
        if source == "embedded":
            stack.enter_context(attribute(hub, "HF_HUB_OFFLINE", True))
            stack.enter_context(attribute(datasets.config, "HF_HUB_OFFLINE", True))
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        # a dozen progress bars go there, and warnings about what is meant to be so
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    """Restore the random states of Python, numpy and torch (CPU), which lm-eval may move."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _harness_tasks(
    names: Sequence[str], source: str, items: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """lm-eval's task objects: name → task; embedded ones hold the chosen items only."""
    import datasets
    import lm_eval.tasks

    definitions = Path(lm_eval.tasks.__file__).parent
    folders = sorted({str(definitions / TASK_TABLE[name].folder) for name in names})
    # looking through all of lm-eval's definitions would take seconds
    manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    if missing := [name for name in names if name not in manager.all_tasks]:
        raise AssetError(
            f"lm-eval has no task {missing[0]!r} in {TASK_TABLE[missing[0]].folder}: install the "
            "version that constraints.txt names"
        )
    override = _embedded if source == "embedded" else _hub
    group = {"group": "zero-shot", "task": [override(name, items[name]) for name in names]}
    try:
        loaded = manager.load([group])["tasks"]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise AssetError(
            f"lm-eval could not load {', '.join(names)} ({type(error).__name__}): connect to the "
            'hub, or use source "embedded"'
        ) from error
    return {name: loaded[name] for name in names}


def _embedded(name: str, items: Sequence[int]) -> dict[str, Any]:
    """The task with the chosen rows of the pinned file; nothing else of it is changed."""
    import datasets

    rows = task_rows(name)
    split = TASK_TABLE[name].split
    table = datasets.Dataset.from_list([rows[index] for index in items])

    def chosen_rows(**_: Any) -> dict[str, Any]:
        return {split: table}

    # splits that are not there must not be looked for
    splits = {f"{other}_split": None for other in ("training", "validation", "test")}
    splits[f"{split}_split"] = split
    return {"task": name, "num_fewshot": 0, "custom_dataset": chosen_rows, **splits}


def _hub(name: str, items: Sequence[int]) -> dict[str, Any]:
    """The task with its own dataset at the pinned revision."""
    where = {"revision": TASK_TABLE[name].revision, "cache_dir": str(cache_dir() / "datasets")}
    return {"task": name, "num_fewshot": 0, "dataset_kwargs": where}


def _score(
    model: nn.Module,
    tokenizer: Any,
    tasks: Mapping[str, Any],
    source: str,
    items: Mapping[str, list[int]],
    batch: int,
) -> tuple[dict[str, Any], int]:
    """lm-eval's answer with every sample, and the tokens that its model takes."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    for name, task in tasks.items():
        size = len(items[name]) if source == "embedded" else TASK_TABLE[name].size
        if len(task.eval_docs) != size:
            raise AssetError(
                f"{name} has {len(task.eval_docs)} items, not {size}: use another source"
            )
    # a copy, because lm-eval gives it a padding token
    harness = HFLM(
        pretrained=model,
        tokenizer=copy.deepcopy(tokenizer),
        batch_size=batch,
        softmax_dtype=torch.float32,
    )
    # what simple_evaluate calls; that one also runs git and other programs to describe the machine
    answer = lm_eval.evaluate(
        lm=harness,
        task_dict=dict(tasks),
        samples=None if source == "embedded" else dict(items),
        bootstrap_iters=0,  # the standard errors come from the samples
    )
    return answer, harness.max_length


def _task_score(
    name: str, version: Any, items: list[int], samples: Sequence[Mapping[str, Any]]
) -> TaskScore:
    """The score from lm-eval's samples, which are in the order of the items."""
    for item, sample in zip(items, samples, strict=True):
        if not all(math.isfinite(likelihood) for likelihood, _ in sample["filtered_resps"]):
            raise NonFinite(
                f"{name} item {item} has a log likelihood that is not finite: the model's logits "
                "are broken; evaluate in dtype float32"
            )

    def scores(metric: str) -> list[int]:
        return [int(sample[metric]) for sample in samples]

    norm = scores("acc_norm") if "acc_norm" in samples[0] else None
    return TaskScore(name, version, TASK_TABLE[name].size, list(items), scores("acc"), norm)


def _warn_of_cuts(samples: Mapping[str, Any], tokenizer: Any, longest: int) -> None:
    """Say how many requests do not fit the model; lm-eval cuts the beginning of their text."""
    for name, task_samples in samples.items():
        texts = ["".join(pair) for sample in task_samples for pair in sample["arguments"]]
        # a token stands for one byte or more, so only a long text has to be tokenised
        texts = [text for text in texts if len(text.encode()) >= longest]
        cut = sum(len(tokenizer(text)["input_ids"]) > longest + 1 for text in texts)
        if cut:
            LOG.warning("%s: the beginning of %d texts is cut to %d tokens", name, cut, longest)


def _example(task: Any) -> list[str]:
    """The first item's requests, the right one first."""
    task.build_all_requests(limit=1)
    texts = [" | ".join(request.args) for request in task.instances]
    right = task.doc_to_text(task.eval_docs[0])
    if not isinstance(right, int):  # WinoGrande's choices differ in what is given
        right = task.doc_to_target(task.eval_docs[0])
    return [texts[int(right)], *texts[: int(right)], *texts[int(right) + 1 :]]
