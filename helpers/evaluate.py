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

from helpers.capture import Progress, check_length, check_tokens, eval_mode, forward, logits_of
from helpers.data.tasks import (
    TASK_TABLE,
    TASKS,
    check_tasks,
    choose_items,
    mean_and_error,
    task_rows,
)
from helpers.device import attribute
from helpers.errors import (
    BadParameter,
    FileError,
    NonFinite,
    check_whole,
    first_line,
)
from helpers.models import WEIGHT_READER, check_model, find_blocks, weights_in_memory
from helpers.paths import cache_dir
from helpers.replay import Replay

LOG = logging.getLogger(__name__)
POSITIONS = 128  # of a window, whose losses are computed together
LARGEST = 700.0  # exp of a larger mean loss is no longer a float


def perplexity(
    model: nn.Module,
    tokens: Tensor,
    *,
    length: int = 2048,
    limit: int | None = None,
    batch: int = 1,
    progress: Progress | None = None,
) -> float:
    """exp of the mean negative log-likelihood of the next token, in windows that do not overlap.

    A window of `length` tokens predicts its tokens 2 … length; text after the last whole window is
    not used. This is the papers' token perplexity, not lm-eval's word perplexity.

    Args: tokens, int64 (tokens,), see `evaluation_tokens`; limit, use only the first `limit`
    windows, None for all; batch, windows in one forward pass; progress, called after each pass. A
    model whose blocks are read one at a time (`load_streamed`) runs each block on all windows; it
    holds their activations, windows · length · width · (size of dtype) bytes.
    Raises BadParameter (less text than asked for), NonFinite.
    """
    windows = check_windows(model, tokens, length, limit)
    check_whole("batch", batch)
    with eval_mode(model):
        if hasattr(model, WEIGHT_READER):
            pairs = _streamed_logits(model, windows, batch)
        else:
            pairs = ((rows, forward(model, rows)) for rows in windows.split(batch))
        total, done = 0.0, 0
        for rows, logits in pairs:
            total += _negative_log_likelihood(logits, rows)
            done += len(rows)
            if progress:
                progress(done, len(windows), "windows")
    # a window of n tokens has n − 1 predictions: nothing comes before its first token
    mean = total / (len(windows) * (length - 1))
    # exp(mean of −log p) is the geometric mean of 1/p: a perplexity of 20 is the uncertainty of a
    # fair choice among 20 tokens
    if not mean < LARGEST:  # NaN is not below anything
        raise NonFinite(
            f"the mean loss is {mean:g}, so the perplexity is not a finite number: check the "
            "model's weights, or evaluate in dtype float32"
        )
    return math.exp(mean)


def check_windows(model: nn.Module, tokens: Tensor, length: int, limit: int | None) -> Tensor:
    """The first `limit` windows (windows, length) of tokens (tokens,), all for None.

    Raises what `perplexity` raises for them, so that a notebook can ask before a long pruning.
    """
    check_model(model)
    check_length(model, check_whole("length", length, least=2))
    if limit is not None:
        check_whole("limit", limit)
    check_tokens(model, tokens, dimensions=1)
    available = len(tokens) // length
    if available < (limit or 1):
        raise BadParameter(
            f"{len(tokens)} tokens hold {available} windows of {length}, not the {limit or 1} "
            "asked for: lower limit or length, or give more text"
        )
    # Windows do not overlap, so each token is scored once. Overlapping ones would give the scored
    # tokens more context and a lower perplexity, which could not be compared with the papers'.
    wanted = limit or available
    return tokens[: wanted * length].view(wanted, length)


def _streamed_logits(
    model: nn.Module, windows: Tensor, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of windows with their logits; each block is read once for all windows."""
    # recorded arguments fit one batch size, so the smaller last batch is a replay of its own
    whole = len(windows) - len(windows) % batch
    for part, size in ((windows[:whole], batch), (windows[whole:], len(windows) - whole)):
        if not len(part):
            continue
        replay = Replay(model, part, size)
        stream = replay.embed()
        for index in range(len(find_blocks(model))):
            with weights_in_memory(model, index):
                replay.advance(index, stream)
        with weights_in_memory(model):  # the final norm and the head
            calls, size = replay.calls, replay.batch  # smaller where memory ran out
            for rows, states in zip(part.split(size), stream.split(size), strict=True):
                yield rows, logits_of(model, rows, states, calls)


def _negative_log_likelihood(logits: Tensor, rows: Tensor) -> float:
    """Summed over the predicted tokens of rows (batch, length); logits: (batch, length, words)."""
    targets = rows.to(logits.device)
    total = 0.0  # a float64: 10⁵ losses added up in float32 would lose the last digits
    # a few positions at a time: a float32 copy of all logits would be the largest tensor in memory
    for start in range(0, rows.shape[1] - 1, POSITIONS):
        stop = min(start + POSITIONS, rows.shape[1] - 1)
        # the logits at a position predict the token after it; log-softmax needs float32, because
        # half precision has about three digits for sums over tens of thousands of words
        part, wanted = logits[:, start:stop].float(), targets[:, start + 1 : stop + 1]
        loss = nn.functional.cross_entropy(part.flatten(0, 1), wanted.flatten(), reduction="sum")
        total += loss.item()
    return total


@dataclass(frozen=True)
class TaskScore:
    """The score of a model on one task, item by item: 1 where its choice is the right one.

    The model chooses what has the highest log likelihood for `acc`, and the highest log likelihood
    a character for `acc_norm` (None for a task without it). `answers` holds what it chose for
    `acc`, an index into the item's choices. An item with no choices, as LAMBADA's, is right where
    the model would write its answer itself, token by token; its answer is then 0, and -1 elsewhere.
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
        """The score for a record: what stands there under the task's name, without `answers`."""
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

    Prompts, choices and metrics are lm-eval's. The same seed gives every model the same items. The
    model is used where it lies; its mode and the random states are as before afterwards.

    Args: limit, items of each task, None for the whole split; seed, which items; source,
    "embedded" (pinned files, no network once cached) or "hub" (lm-eval's own datasets at a pinned
    revision); batch, requests in one forward pass, whose logits need 4 · batch · tokens ·
    vocabulary bytes, twice.
    Raises BadParameter, FileError (no data, or another lm-eval), NonFinite.
    """
    check_model(model)
    names = check_zero_shot(tasks=tasks, limit=limit, seed=seed, source=source, batch=batch)
    items = {name: choose_items(TASK_TABLE[name].size, limit, seed) for name in names}
    with _quiet_harness(source), eval_mode(model):
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        # a copy of the tokenizer, because lm-eval gives it a padding token
        harness = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch,
            # half precision would round the likelihoods of two choices to a tie
            softmax_dtype=torch.float32,
        )
        # not simple_evaluate, which also runs git and other programs to describe the machine
        answer = lm_eval.evaluate(  # its samples hold each item's likelihoods
            lm=harness,
            task_dict=_harness_tasks(names, source, items),
            samples=items if source == "hub" else None,  # embedded rows are the chosen ones only
            bootstrap_iters=0,  # the standard errors come from the samples
        )
    scores = {}
    for name in names:
        samples = answer["samples"][name]
        _warn_of_cuts(name, samples, tokenizer, harness.max_length)
        scores[name] = _task_score(name, answer["versions"][name], items[name], samples)
    return scores


def check_zero_shot(
    *, tasks: Sequence[str], limit: int | None, seed: int, source: str, batch: int
) -> list[str]:
    """The tasks as a list, if `zero_shot` can take these arguments; else BadParameter."""
    names = check_tasks(tasks, limit, source)
    check_whole("seed", seed, least=0)
    check_whole("batch", batch)
    return names


def zero_shot_examples(
    tasks: Sequence[str] = TASKS, *, source: str = "embedded"
) -> dict[str, list[str]]:
    """The first item of each task as lm-eval words it: a text for each choice, the right one first.

    In a text, " | " divides what the model is given from the continuation whose likelihood counts.
    Raises what `zero_shot` raises for its tasks and source, so that a notebook can ask before a
    long pruning.
    """
    names = check_zero_shot(tasks=tasks, limit=None, seed=0, source=source, batch=1)
    examples = {}
    with _quiet_harness(source):
        for name, task in _harness_tasks(names, source, {name: [0] for name in names}).items():
            task.build_all_requests(limit=1)
            texts = [" | ".join(request.args) for request in task.instances]
            right = task.doc_to_text(task.eval_docs[0])
            if not isinstance(right, int):  # only WinoGrande's choices differ in what is given
                right = task.doc_to_target(task.eval_docs[0]) if len(texts) > 1 else 0
            examples[name] = [texts.pop(int(right)), *texts]
    return examples


def zero_shot_metrics(scores: Mapping[str, TaskScore]) -> dict[str, dict[str, Any]]:
    """A record's metrics: each task's accuracies with their standard errors, and the mean accuracy.

    The tolerance of an accuracy is one standard error, as a fraction of it: rounding may decide
    whether a weight at the mask's edge stays, and that may turn an item.
    """
    metrics: dict[str, dict[str, Any]] = {}
    for name, score in scores.items():
        for key, value, error in (
            (f"{name}_acc", score.accuracy, score.stderr),
            (f"{name}_acc_norm", score.accuracy_norm, score.stderr_norm),
        ):
            if value is not None:
                tolerance = max(0.02, error / value) if value else 0.02
                metrics[key] = {"value": value, "unit": "1", "tolerance": tolerance}
                metrics[f"{key}_stderr"] = {"value": error, "unit": "1", "tolerance": 0.5}
    mean = statistics.fmean(score.accuracy for score in scores.values())
    # the mean is a sum over tasks divided by their number k, and the variances of independent
    # estimates add: sqrt(Σ stderr²)/k
    error = math.hypot(*(score.stderr for score in scores.values())) / len(scores)
    tolerance = error / mean if mean else 0.0
    return metrics | {"mean_acc": {"value": mean, "unit": "1", "tolerance": tolerance}}


@contextlib.contextmanager
def _quiet_harness(source: str) -> Iterator[None]:
    """Inside, lm-eval prints nothing and, for embedded rows, uses no network.

    The random states and switches that it changes are restored afterwards.
    """
    import datasets
    import huggingface_hub.constants as hub

    logger = logging.getLogger("lm_eval")
    with contextlib.ExitStack() as stack:
        # an ExitStack calls these in reverse order when the block is left, after an error too
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if source == "embedded":
            stack.enter_context(attribute(hub, "HF_HUB_OFFLINE", True))
            stack.enter_context(attribute(datasets.config, "HF_HUB_OFFLINE", True))
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        # progress bars go there, and warnings about what is intended
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


def _harness_tasks(
    names: Sequence[str], source: str, items: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """lm-eval's task objects by name; embedded ones hold the chosen items only."""
    import datasets
    import lm_eval.tasks

    definitions = Path(lm_eval.tasks.__file__).parent
    folders = sorted({str(definitions / TASK_TABLE[name].folder) for name in names})
    # looking through all of lm-eval's definitions would take seconds
    manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    if missing := [name for name in names if name not in manager.all_tasks]:
        raise FileError(
            f"lm-eval has no task {missing[0]!r} in {TASK_TABLE[missing[0]].folder}: install the "
            "version that constraints.txt names"
        )
    group = [_override(name, source, items[name]) for name in names]
    try:
        # inside a group, because lm-eval ignores changes of a task at the top level
        loaded = manager.load([{"group": "zero-shot", "task": group}])["tasks"]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        advice = "install the versions that constraints.txt names"
        if source == "hub":
            advice = 'connect to the hub, or use source "embedded"'
        raise FileError(
            f"lm-eval could not load {', '.join(names)} ({type(error).__name__}: "
            f"{first_line(error)}): {advice}"
        ) from error
    for name in names if source == "hub" else ():
        found, size = len(loaded[name].eval_docs), TASK_TABLE[name].size
        if found != size:  # `items` would then be other items
            raise FileError(f'{name} has {found} items instead of {size}: use source "embedded"')
    return {name: loaded[name] for name in names}


def _override(name: str, source: str, items: Sequence[int]) -> dict[str, Any]:
    """Where a task's rows come from; nothing else of lm-eval's definition is changed."""
    task, override = TASK_TABLE[name], {"task": name, "num_fewshot": 0}
    if task.split == "validation":  # where a task has a test split too, lm-eval takes that
        override["test_split"] = None
    if source == "hub":
        where = {"revision": task.revision, "cache_dir": str(cache_dir() / "datasets")}
        return {**override, "dataset_kwargs": where}
    import datasets

    rows = task_rows(name)
    chosen = datasets.Dataset.from_list([rows[index] for index in items])
    # None: lm-eval must not look for the other splits
    splits = dict.fromkeys(("training_split", "validation_split", "test_split"))
    splits[f"{task.split}_split"] = task.split
    return {**override, **splits, "custom_dataset": lambda **_: {task.split: chosen}}


def _task_score(
    name: str, version: Any, items: list[int], samples: Sequence[Mapping[str, Any]]
) -> TaskScore:
    """The score from lm-eval's samples, which are in the order of the items."""
    answers = []
    for item, sample in zip(items, samples, strict=True):
        likelihoods = [likelihood for likelihood, _ in sample["filtered_resps"]]
        # the first of equal ones, as lm-eval takes it
        answer = int(np.argmax(likelihoods))
        if len(likelihoods) == 1 and not sample["filtered_resps"][0][1]:
            answer = -1  # there is one text alone, and it is not what the model would write
        answers.append(answer)
        if not all(map(math.isfinite, likelihoods)):
            raise NonFinite(
                f"{name} item {item} has a log likelihood that is not finite: check the model's "
                "weights, or evaluate in dtype float32"
            )
    acc, norm = (
        [int(sample[metric]) for sample in samples] if metric in samples[0] else None
        for metric in ("acc", "acc_norm")
    )
    return TaskScore(name, version, TASK_TABLE[name].size, items, acc, norm, answers)


def _warn_of_cuts(
    name: str, samples: Sequence[Mapping[str, Any]], tokenizer: Any, longest: int
) -> None:
    """Log how many requests do not fit the model: lm-eval drops the beginning of their text."""
    texts = ["".join(pair) for sample in samples for pair in sample["arguments"]]
    # a token stands for one byte or more, so only a long text has to be tokenised
    texts = [text for text in texts if len(text.encode()) >= longest]
    # the last token is only predicted, so one more than the model takes still fits
    cut = sum(len(tokenizer(text)["input_ids"]) > longest + 1 for text in texts)
    if cut:
        LOG.warning(
            "%s: %d texts are longer than the %d tokens this model can take; lm-eval dropped their "
            "beginning",
            name,
            cut,
            longest,
        )
