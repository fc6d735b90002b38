"""Explorer of models: type a prompt and read what several models answer, side by side.

The models write in turn, a token each, in a thread that can be stopped; each keeps its keys and
values, so that a token costs one token's work. Greedy answers are those of the model's own
`generate(do_sample=False)`.
"""

from __future__ import annotations

import copy
import html
import inspect
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
import pandas as pd
import torch
from pandas.io.formats.style import Styler
from torch import Tensor, nn

from helpers.capture import Progress
from helpers.errors import BadParameter, NonFinite, OutOfMemory, Stopped, check_real, check_whole
from helpers.explore.controls import Worker, choice, row, slider
from helpers.machine import ram
from helpers.methods import METHODS
from helpers.models import WEIGHT_READER, device_of
from helpers.prune import prune_model

MOST_TOKENS = 400  # the slider's end
SHOW_SECONDS = 0.1  # between two updates of answers that grow
MODES = ("continue the text", "chat")
WAYS = ("greedy", "sampled")
TARGETS = {f"{percent} %": {"sparsity": percent / 100} for percent in range(20, 95, 10)}
TARGETS |= {pattern: {"pattern": pattern} for pattern in ("2:4", "4:8")}
HALF_CHARACTER = "\ufffd"  # what the bytes of an unfinished character are decoded to


class Writer:
    """A model that continues a prompt (token ids), a token a `step`; `new` is what it wrote.

    pick chooses a token by the logits (vocabulary,) in float32.
    """

    def __init__(
        self, label: str, model: nn.Module, ids: Sequence[int], pick: Callable[[Tensor], int]
    ) -> None:
        self.label, self.model, self.ids, self.pick = label, model, list(ids), pick
        self.new: list[int] = []
        self.surprise = self.seconds = 0.0  # sum of -log p of what was written; time it took
        self.ended = False
        self.of_first: float | None = None  # perplexity of the first model's answer
        ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        self._ends = ends if isinstance(ends, list) else [ends]
        # newer transformers have another name for the keys and values that a model keeps
        takes_cache = "cache" in inspect.signature(model.forward).parameters
        self._memory = "cache" if takes_cache else "past_key_values"
        self._kept: Any = None

    @property
    def perplexity(self) -> float:
        """Of a token of its own answer, to the model itself; NaN before the first."""
        return math.exp(self.surprise / len(self.new)) if self.new else math.nan

    @torch.no_grad()
    def step(self) -> None:
        """Write one token. Raises NonFinite if the model gives no numbers to choose by."""
        started = time.perf_counter()
        if self._kept is None:  # at first, and in families that keep nothing
            output = _forward(self.model, [*self.ids, *self.new], 1, use_cache=True)
        else:
            memory = {self._memory: self._kept}
            output = _forward(self.model, self.new[-1:], 1, use_cache=True, **memory)
        self._kept = output.get(self._memory)
        logits = output.logits[0, -1].float()
        if not math.isfinite(logits.max()):  # NaN is the largest of any
            raise NonFinite(
                f"{self.label} gives NaN or infinity instead of logits: load it as float32, or "
                "prune it less"
            )
        token = self.pick(logits)
        self.surprise -= float(torch.log_softmax(logits, dim=-1)[token])
        self.new.append(token)
        self.ended = token in self._ends
        self.seconds += time.perf_counter() - started


def _forward(model: nn.Module, ids: Sequence[int], keep: int, **given: Any) -> Any:
    """The model's output for ids, with only the last `keep` logits from models that offer that."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        given["logits_to_keep"] = keep  # all logits of a long prompt would fill the memory
    return model(input_ids=torch.tensor([list(ids)], device=device_of(model)), **given)


def greedy(logits: Tensor) -> int:
    """The token of the largest logit."""
    return int(logits.argmax())


def sampler(temperature: float, seed: int) -> Callable[[Tensor], int]:
    """A random choice by softmax(logits / temperature), repeatable by its seed."""
    generator = torch.Generator().manual_seed(seed)

    def pick(logits: Tensor) -> int:
        # on the CPU, so that a seed means the same on every device
        chances = torch.softmax(logits / temperature, dim=-1).cpu()
        return int(torch.multinomial(chances, 1, generator=generator))

    return pick


@torch.no_grad()
def answer_perplexity(model: nn.Module, ids: Sequence[int], answer: Sequence[int]) -> float:
    """A model's perplexity of an answer (token ids) that follows a prompt (token ids)."""
    output = _forward(model, [*ids, *answer], len(answer) + 1, use_cache=False)
    logits = output.logits[0, -len(answer) - 1 : -1].float()
    target = torch.tensor(answer, device=logits.device)
    return math.exp(nn.functional.cross_entropy(logits, target).item())


def write_answers(
    writers: Sequence[Writer], new_tokens: int, progress: Progress, show: Callable[[], Any]
) -> None:
    """Let the models write in turn; then each of the others reads the first one's answer.

    `show` is called a few times a second, and at the end whatever ended it.
    """
    shown = 0.0
    try:
        for step in range(new_tokens):
            alive = [writer for writer in writers if not writer.ended]
            if not alive:
                break
            progress(step, new_tokens, "tokens")
            for writer in alive:
                writer.step()
            if time.monotonic() - shown > SHOW_SECONDS:
                show()
                shown = time.monotonic()
        first, *others = writers
        for writer in others:
            progress(new_tokens, new_tokens, "tokens; comparing")
            writer.of_first = answer_perplexity(writer.model, first.ids, first.new)
    finally:
        show()


def prompt_ids(tokenizer: Any, prompt: str, chat: bool) -> list[int]:
    """The token ids of a prompt, in the tokenizer's chat template if `chat`.

    Raises BadParameter for an empty prompt, and for chat without a template.
    """
    if not prompt.strip():
        raise BadParameter("the prompt is empty: type some words to be continued or answered")
    if not chat:
        return list(tokenizer(prompt).input_ids)
    if not getattr(tokenizer, "chat_template", None):
        raise BadParameter("chat is not possible, the tokenizer has no template: continue the text")
    messages = [{"role": "user", "content": prompt}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return list(asked["input_ids"])


def check_length(label: str, model: nn.Module, ids: Sequence[int], new_tokens: int) -> None:
    """Raise BadParameter if prompt and answer exceed the model's context or vocabulary."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and len(ids) + new_tokens > limit:
        raise BadParameter(
            f"the prompt has {len(ids)} tokens and {new_tokens} are to follow, {label} reads "
            f"{limit} in all: shorten the prompt or ask for fewer"
        )
    known = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= known:
        raise BadParameter(
            f"the tokenizer gives token {max(ids)}, {label} knows {known}: give its own tokenizer"
        )


def answer_text(tokenizer: Any, ids: Sequence[int], new: Sequence[int], done: bool) -> str:
    """The text of the tokens that follow a prompt, without special tokens.

    Both are decoded together and the prompt's text is taken off: alone, an answer could lose its
    first space. Until it is done, a character of which bytes are missing is left out.
    """
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(list(ids), **plain)
    whole = tokenizer.decode([*ids, *new], **plain)
    text = whole[len(os.path.commonprefix([before, whole])) :]
    return text if done else text.rstrip(HALF_CHARACTER)


def pruned_copy(
    model: nn.Module, tokens: Tensor, *, progress: Progress | None = None, **choices: Any
) -> nn.Module:
    """A pruned copy of a model, which itself stays as it is.

    Args: tokens, int64 (sequences, length); choices, as `prune_model` takes them (method,
    sparsity or pattern, options). Raises what `prune_model` raises, and OutOfMemory if the copy
    would not leave as much memory free as it takes.
    """
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    free, _ = ram()
    if device_of(model).type == "cpu" and free < 2 * size:
        raise OutOfMemory(
            f"a copy takes {size / 1e9:.1f} GB and its pruning as much, {free / 1e9:.1f} GB are "
            "free: close other kernels or remove a model"
        )
    copied = copy.deepcopy(model)
    try:
        prune_model(copied, tokens, progress=progress, **choices)
    except Stopped as stopped:  # prune_model speaks of the model that it was given, the copy
        text = "stopped: the unfinished copy is gone, no other model has changed"
        raise Stopped(text) from stopped
    return copied


class TryIt(ipywidgets.VBox):
    """A prompt, how to continue it, and a column for each model: see `try_it`."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        tokenizer: Any,
        tokens: Tensor | None,
        controls: dict[str, ipywidgets.Widget],
    ) -> None:
        self.models: dict[str, nn.Module] = {}
        self.columns: dict[str, ipywidgets.HTML] = {}
        self.writers: list[Writer] = []
        self.tokenizer, self.tokens, self.controls = tokenizer, tokens, controls
        self.worker, self.pruning = Worker(), Worker()
        self.answers = ipywidgets.Box(layout=ipywidgets.Layout(display="flex", flex_flow="wrap"))
        self.button = ipywidgets.Button(description="Generate", icon="play", button_style="primary")
        self.button.on_click(lambda _button: self.generate())
        controls["way"].observe(self._lock, names="value")
        self._lock()
        for label, model in models.items():
            self.add(label, model)
        length = [controls["mode"]] if getattr(tokenizer, "chat_template", None) else []
        length.append(controls["new_tokens"])
        picking = [controls[name] for name in ("way", "temperature", "seed")]
        rows = [controls["prompt"], row(*length), row(*picking), row(self.button, self.worker)]
        super().__init__([*rows, self.answers, *([] if tokens is None else [self._prune_row()])])

    def _prune_row(self) -> ipywidgets.Widget:
        """Method, target and button that prune a copy of the first model."""
        title = ipywidgets.HTML(f"Another one, from {html.escape(next(iter(self.models)))}:")
        self.method = choice(list(METHODS), "admm-grad", "method")
        self.target = choice(list(TARGETS), "60 %", "target")
        self.prune_button = ipywidgets.Button(description="Prune a copy", icon="scissors")
        self.prune_button.on_click(lambda _button: self.prune())
        line = row(title, self.method, self.target, self.prune_button, self.pruning)
        line.layout.margin = "16px 0 0 0"
        return line

    def _lock(self, _change: Any = None) -> None:
        """Temperature and seed mean nothing to greedy answers."""
        for name in ("temperature", "seed"):
            self.controls[name].disabled = self.controls["way"].value == "greedy"

    def add(self, label: str, model: nn.Module) -> None:
        """Show one more model in a column of its own; an older one of that label is replaced.

        Raises BadParameter for what is not a model in memory.
        """
        if not isinstance(model, nn.Module) or hasattr(model, WEIGHT_READER):
            raise BadParameter(
                f"{label!r} is no model in memory but a {type(model).__name__}, or is read block "
                "by block: give one that load_model returned"
            )
        layout = ipywidgets.Layout(flex="1 1 280px", min_width="0", margin="6px 12px 0 0")
        column = ipywidgets.HTML(_column(str(label), "", "", ""), layout=layout)
        self.models[str(label)], self.columns[str(label)] = model, column
        self.answers.children = tuple(self.columns.values())

    def remove(self, label: str) -> None:
        """Take a model out, and free its memory if nothing else holds it. Raises BadParameter."""
        if label not in self.models or len(self.models) == 1:
            raise BadParameter(
                f"{label!r} cannot be removed: give one of {', '.join(self.models)}, not the last"
            )
        self.writers = [writer for writer in self.writers if writer.label != label]
        del self.models[label], self.columns[label]
        self.answers.children = tuple(self.columns.values())

    def generate(self) -> None:
        """Let the models answer in a thread, as the button does."""
        values = self._values()
        self.worker.start(lambda: self._answer(values, self.worker.progress))

    def prune(self) -> None:
        """Prune a copy of the first model in a thread and add it, as the button does."""
        method, target, worker = self.method.value, self.target.value, self.pruning
        first = next(iter(self.models.values()))

        def work() -> None:
            worker.progress(0, 1, "layers: copying the model")
            choices = {"method": method, **TARGETS[target]}
            pruned = pruned_copy(first, self.tokens, progress=worker.progress, **choices)
            worker.check()
            self.add(f"{method} {target}", pruned)

        worker.start(work)

    def still(self, prompt: str | None = None) -> Styler:
        """The static twin: a table of what each model answers, computed here and now.

        Takes the controls' values, with another prompt if one is given.
        Raises BadParameter, NonFinite.
        """
        values = self._values() | ({} if prompt is None else {"prompt": prompt})
        self._answer(values, lambda _done, _total, _name: None)
        rows = {
            writer.label: {
                "answer": self._text(writer),
                "tokens": len(writer.new),
                "perplexity of its answer": writer.perplexity,
                f"of {self.writers[0].label}'s answer": writer.of_first or writer.perplexity,
            }
            for writer in self.writers
        }
        frame = pd.DataFrame.from_dict(rows, orient="index")
        style = frame.style.format(escape="html").format("{:.2f}", subset=list(frame.columns[2:]))
        style = style.format_index(escape="html").format_index(escape="html", axis=1)
        left = {"text-align": "left", "white-space": "pre-wrap", "max-width": "44em"}
        style = style.set_properties(subset=["answer"], **left)
        return style.set_caption(html.escape(values["prompt"]))

    def _values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.controls.items()}

    def _answer(self, values: Mapping[str, Any], progress: Progress) -> None:
        """Check what is asked for, then write, column by column, token by token."""
        chat, count = values["mode"] == "chat", values["new_tokens"]
        ids = prompt_ids(self.tokenizer, values["prompt"], chat)
        for label, model in self.models.items():
            check_length(label, model, ids, count)
        self.writers = []
        for label, model in self.models.items():
            sampled = values["way"] == "sampled"  # each model draws from the same seed
            pick = sampler(values["temperature"], values["seed"]) if sampled else greedy
            self.writers.append(Writer(label, model, ids, pick))
        before = "" if chat else values["prompt"]
        write_answers(self.writers, count, progress, lambda: self._show(before))

    def _show(self, before: str) -> None:
        """Show every answer as far as it is written; `before` is the text that it continues."""
        first = self.writers[0].label
        for writer in self.writers:
            if writer.label in self.columns:  # it may have been removed meanwhile
                text, facts = self._text(writer), _facts(writer, first)
                self.columns[writer.label].value = _column(writer.label, before, text, facts)

    def _text(self, writer: Writer) -> str:
        done = writer.ended or not self.worker.running or writer.of_first is not None
        return answer_text(self.tokenizer, writer.ids, writer.new, done)


def _column(label: str, before: str, text: str, facts: str) -> str:
    """One model's column: its label, the prompt in grey with what follows, and the facts."""
    frame = "border-left:3px solid var(--jp-border-color1,#bdbdbd);padding:0 0 0 10px"
    body = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.45;margin:2px 0"
    label, before, text, facts = map(html.escape, (label, before, text, facts))
    return (
        f'<div style="{frame}"><b>{label}</b>'
        f'<div style="{body}"><span style="opacity:0.65">{before}</span>{text}</div>'
        f'<div style="opacity:0.75;line-height:1.3">{facts}</div></div>'
    )


def _facts(writer: Writer, first: str) -> str:
    """Tokens, speed, and the model's perplexity of its own answer and of the first one's."""
    count = len(writer.new)
    if not count:
        return ""
    facts = [f"{count} token{'s' if count > 1 else ''}{', ended' if writer.ended else ''}"]
    facts.append(f"{count / writer.seconds:.1f} tokens/s")
    facts.append(f"perplexity of its own answer {writer.perplexity:.2f}")
    if writer.of_first is not None:
        facts.append(f"of {first}'s answer {writer.of_first:.2f}")
    return " · ".join(facts)


def try_it(
    models: Mapping[str, nn.Module],
    tokenizer: Any,
    *,
    prompt: str = "The capital of France is",
    new_tokens: int = 40,
    temperature: float | None = None,
    seed: int = 0,
    chat: bool = False,
    tokens: Tensor | None = None,
) -> TryIt:
    """Type a prompt and read what the models answer side by side, token by token, with Stop.

    Args: models by label, the first is the one to compare with; their tokenizer; then where the
    controls start: temperature None is greedy; chat uses the tokenizer's template, if it has one.
    With tokens, int64 (sequences, length), copies of the first model can be pruned as well.
    Greedy answers are those of `generate(do_sample=False)`; of a model's generation_config only
    the end tokens count. `still()` is the static twin. Raises BadParameter.
    """
    if not models:
        raise BadParameter('models is empty: give {"dense": model} from load_model, or several')
    if chat and not getattr(tokenizer, "chat_template", None):
        raise BadParameter("chat=True is not possible, the tokenizer has no template: leave it out")
    most = max(MOST_TOKENS, check_whole("new_tokens", new_tokens))
    heat = 0.8 if temperature is None else check_real("temperature", temperature, above=0)
    seed = check_whole("seed", seed, least=0)
    whole, real = ipywidgets.IntSlider, ipywidgets.FloatSlider
    wide = ipywidgets.Layout(width="min(720px, 98%)")
    controls = {
        "prompt": ipywidgets.Textarea(prompt, description="prompt", rows=3, layout=wide),
        "mode": choice(MODES, MODES[bool(chat)], "mode"),
        "new_tokens": slider(whole, new_tokens, "new tokens", min=1, max=most),
        "way": choice(WAYS, WAYS[temperature is not None], "next token"),
        "temperature": slider(real, heat, "temperature", min=0.1, max=2.0, step=0.1),
        "seed": ipywidgets.BoundedIntText(seed, max=2**31 - 1, description="seed"),
    }
    return TryIt(models, tokenizer, tokens, controls)
