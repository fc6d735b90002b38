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

import anywidget
import ipywidgets
import pandas as pd
import torch
import traitlets
from pandas.io.formats.style import Styler
from torch import Tensor, nn

from helpers.errors import (
    BadParameter,
    NonFinite,
    OutOfMemory,
    Stopped,
    check_real,
    check_whole,
)
from helpers.explore.controls import Progress, Task, choice, row, slider
from helpers.machine import ram
from helpers.methods import METHODS
from helpers.models import WEIGHT_READER, device_of
from helpers.prune import prune_model
from helpers.results import METHOD_ORDER, target_name

MOST_TOKENS = 400  # the slider's end
SHOW_SECONDS = 0.1  # between two pictures of answers that grow
MODES = ("continue the text", "chat")
WAYS = ("greedy", "sampled")
TARGETS = {f"{percent} %": (percent / 100, "unstructured") for percent in range(20, 95, 10)}
TARGETS |= {pattern: (None, pattern) for pattern in ("2:4", "4:8")}
HALF_CHARACTER = "\ufffd"  # what the bytes of an unfinished character are decoded to


# ------------------------------------------------------------------ one model that writes


class Writer:
    """A model that continues a prompt, a token a `step`.

    Args: ids, the prompt's token ids; pick, which chooses a token of the vocabulary's logits
    (vocabulary,) in float32. `surprise` sums -log p of the tokens written, before any temperature.
    """

    def __init__(
        self, label: str, model: nn.Module, ids: Sequence[int], pick: Callable[[Tensor], int]
    ) -> None:
        self.label, self.model, self.ids, self.pick = label, model, list(ids), pick
        self.new: list[int] = []
        self.surprise, self.seconds = 0.0, 0.0
        self.ended = False
        self.of_first: float | None = None  # perplexity of the first model's answer
        self._ends = _end_tokens(model)
        # newer transformers have another name for the keys and values that a model keeps
        self._memory = "cache" if "cache" in _arguments(model) else "past_key_values"
        self._cache: Any = None

    @property
    def perplexity(self) -> float:
        """How surprised the model is by a token of its own answer; NaN before the first."""
        return math.exp(self.surprise / len(self.new)) if self.new else math.nan

    @torch.no_grad()
    def step(self) -> None:
        """Write one token. Raises NonFinite if the model gives no numbers to choose by."""
        started = time.perf_counter()
        # without a cache, which some families lack, everything is read again
        unread = self.new[-1:] if self._cache is not None else [*self.ids, *self.new]
        given = {self._memory: self._cache} if self._cache is not None else {}
        answer = _forward(self.model, unread, 1, use_cache=True, **given)
        self._cache = answer.get(self._memory)
        logits = answer.logits[0, -1].float()
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
    """The model's output for ids, with the logits of the last `keep` of them where it can."""
    if "logits_to_keep" in _arguments(model):
        given["logits_to_keep"] = keep  # all logits of a long prompt would fill the memory
    return model(input_ids=torch.tensor([list(ids)], device=device_of(model)), **given)


def _arguments(model: nn.Module) -> Mapping[str, Any]:
    """What the model's forward can be given."""
    return inspect.signature(model.forward).parameters


def _end_tokens(model: nn.Module) -> set[int]:
    """The tokens that end an answer, as the model's own `generate` takes them."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def greedy(logits: Tensor) -> int:
    """The token of the largest logit."""
    return int(logits.argmax())


def sampler(temperature: float, seed: int) -> Callable[[Tensor], int]:
    """A choice by chance: softmax of logits / temperature, the same each time for a seed.

    Raises BadParameter.
    """
    check_real("temperature", temperature, above=0)
    generator = torch.Generator().manual_seed(check_whole("seed", seed, least=0))

    def pick(logits: Tensor) -> int:
        # on the CPU, so that a seed means the same on every device
        chances = torch.softmax(logits / temperature, dim=-1).cpu()
        return int(torch.multinomial(chances, 1, generator=generator))

    return pick


@torch.no_grad()
def answer_perplexity(model: nn.Module, ids: Sequence[int], answer: Sequence[int]) -> float:
    """How surprised a model is by a token of an answer (token ids) that follows a prompt (ids)."""
    output = _forward(model, [*ids, *answer], len(answer) + 1, use_cache=False)
    logits = output.logits[0, -len(answer) - 1 : -1].float()
    chances = torch.log_softmax(logits, dim=-1)
    picked = chances[torch.arange(len(answer)), torch.tensor(answer, device=chances.device)]
    return math.exp(-float(picked.mean()))


def write_answers(
    writers: Sequence[Writer],
    new_tokens: int,
    progress: Progress,
    show: Callable[[], Any],
) -> None:
    """Let all writers write in turn, and each judge the first one's answer when they are done.

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
        first = writers[0]
        for writer in writers[1:]:
            progress(new_tokens, new_tokens, "tokens; comparing")
            writer.of_first = answer_perplexity(writer.model, first.ids, first.new)
    finally:
        show()


# ------------------------------------------------------------------ prompt and text


def prompt_ids(tokenizer: Any, prompt: str, chat: bool) -> list[int]:
    """The token ids of a prompt, in the tokenizer's chat template if `chat`.

    Raises BadParameter for a prompt of nothing and for a tokenizer without a template.
    """
    if not prompt.strip():
        raise BadParameter("the prompt is empty: type some words to be continued or answered")
    if not chat:
        return list(tokenizer(prompt).input_ids)
    if not has_template(tokenizer):
        raise BadParameter("chat is not possible, the tokenizer has no template: continue the text")
    talk = [{"role": "user", "content": prompt}]
    asked = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True)
    return list(asked["input_ids"])


def has_template(tokenizer: Any) -> bool:
    """Whether the model was made to chat, as far as its tokenizer says."""
    return bool(getattr(tokenizer, "chat_template", None))


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


# ------------------------------------------------------------------ pruning one more


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
    except Stopped as stopped:
        # what prune_model says is about the model that it was given, which is the copy
        raise Stopped(
            "stopped: the unfinished copy is gone, no other model has changed"
        ) from stopped
    return copied


# ------------------------------------------------------------------ the widgets

_SCRIPT = r"""
// Ctrl+Enter or Shift+Enter in the prompt stands for the button
function render({ model, el }) {
  function listen(event) {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey || event.shiftKey)) return;
    const home = el.closest(".try-it");
    const text = event.target;
    if (!home || text.tagName !== "TEXTAREA" || text.closest(".try-it") !== home) return;
    event.preventDefault();
    event.stopPropagation(); // else JupyterLab would run the cell
    model.set("pressed", model.get("pressed") + 1);
    model.save_changes();
  }
  window.addEventListener("keydown", listen, true);
  return () => window.removeEventListener("keydown", listen, true);
}
export default { render };
"""


class SendKey(anywidget.AnyWidget):
    """Counts how often Ctrl+Enter or Shift+Enter was pressed in the prompt; shows nothing."""

    _esm = _SCRIPT
    pressed = traitlets.Int(0).tag(sync=True)


class TryIt(ipywidgets.VBox):
    """A prompt, how to continue it, and a column for each model: see `try_it`."""

    def __init__(
        self, models: Mapping[str, nn.Module], tokenizer: Any, tokens: Tensor | None, **start: Any
    ) -> None:
        self.models: dict[str, nn.Module] = {}
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.writers: list[Writer] = []
        self.columns: dict[str, ipywidgets.HTML] = {}
        self.task, self.pruning = Task(), Task()
        self._answers = ipywidgets.Box(layout=ipywidgets.Layout(display="flex", flex_flow="wrap"))
        self.controls = _controls(tokenizer, **start)
        self.button = ipywidgets.Button(
            description="Generate", icon="play", button_style="primary", tooltip="or Ctrl+Enter"
        )
        self.button.on_click(lambda _: self.generate())
        self.key = SendKey()
        self.key.observe(lambda _: self.generate(), names="pressed")
        self.controls["way"].observe(lambda _: self._lock(), names="value")
        self._lock()
        for label, model in models.items():
            self.add(label, model)
        super().__init__(self._rows())
        self.add_class("try-it")

    def _rows(self) -> list[ipywidgets.Widget]:
        """The parts from top to bottom; what is not possible is not offered."""
        asked = self.controls
        mode = [asked["mode"]] if has_template(self.tokenizer) else []
        rows = [asked["prompt"], row(*mode, asked["new_tokens"])]
        rows.append(row(*(asked[name] for name in ("way", "temperature", "seed"))))
        rows += [row(self.button, self.task, self.key), self._answers]
        return rows + ([self._prune_row()] if self.tokens is not None else [])

    def _prune_row(self) -> ipywidgets.Widget:
        """Method, target and button that prune a copy of the first model."""
        known = [name for name in METHOD_ORDER if name in METHODS]
        names = known + sorted(set(METHODS) - set(known))
        title = ipywidgets.HTML(f"Another one, from {html.escape(next(iter(self.models)))}:")
        title.layout.margin = "0 12px 0 2px"
        self.method = choice(names, "admm-grad", "method")
        self.target = choice(list(TARGETS), "60 %", "target")
        self.prune_button = ipywidgets.Button(description="Prune a copy", icon="scissors")
        self.prune_button.on_click(lambda _: self.prune())
        line = row(title, self.method, self.target, self.prune_button, self.pruning)
        line.layout.margin = "16px 0 0 0"
        return line

    def _lock(self) -> None:
        """Temperature and seed mean nothing to greedy answers."""
        for name in ("temperature", "seed"):
            self.controls[name].disabled = self.controls["way"].value == "greedy"

    def add(self, label: str, model: nn.Module) -> None:
        """One more model, in a column of its own; a label that is there already is replaced.

        Raises BadParameter for what is not a model in memory.
        """
        if not isinstance(model, nn.Module) or getattr(model, WEIGHT_READER, None) is not None:
            raise BadParameter(
                f"{label!r} is no model in memory but a {type(model).__name__}, or is read block "
                "by block: give one that load_model returned"
            )
        layout = ipywidgets.Layout(flex="1 1 280px", min_width="0", margin="6px 12px 0 0")
        self.models[str(label)] = model
        self.columns[str(label)] = ipywidgets.HTML(_column(str(label), "", "", ""), layout=layout)
        self._answers.children = tuple(self.columns.values())

    def remove(self, label: str) -> None:
        """Take a model out, and free its memory if nothing else holds it. Raises BadParameter."""
        if label not in self.models or len(self.models) == 1:
            raise BadParameter(
                f"{label!r} cannot be removed: give one of {', '.join(self.models)}, not the last"
            )
        self.writers = [writer for writer in self.writers if writer.label != label]
        del self.models[label], self.columns[label]
        self._answers.children = tuple(self.columns.values())

    def generate(self) -> None:
        """Let the models answer in a thread, as the button does."""
        asked = {name: control.value for name, control in self.controls.items()}
        self.task.start(lambda progress: self._answer(asked, progress), lambda _: None)

    def prune(self) -> None:
        """Prune a copy of the first model in a thread and add it, as the button does."""
        method, target = self.method.value, self.target.value
        sparsity, pattern = TARGETS[target]
        choices = {"method": method, "sparsity": sparsity, "pattern": pattern}
        label = f"{method} {target_name(pattern, sparsity or 0)}"
        first = next(iter(self.models.values()))
        self.pruning.start(
            lambda progress: pruned_copy(first, self.tokens, progress=progress, **choices),
            lambda pruned: self.add(label, pruned),
        )

    def still(self, prompt: str | None = None) -> Styler:
        """The static twin: a table of what each model answers, computed here and now.

        Takes the controls as they stand and the prompt given, or the one that stands there.
        Raises BadParameter, NonFinite.
        """
        asked = {name: control.value for name, control in self.controls.items()}
        if prompt is not None:
            asked["prompt"] = prompt
        self._answer(asked, lambda _done, _total, _name: None)
        first = self.writers[0].label
        rows = {
            writer.label: {
                "answer": self._text(writer, done=True),
                "tokens": len(writer.new),
                "perplexity of its answer": writer.perplexity,
                f"of {first}'s answer": writer.of_first or writer.perplexity,
            }
            for writer in self.writers
        }
        return _as_table(pd.DataFrame.from_dict(rows, orient="index"), asked["prompt"])

    def _answer(self, asked: Mapping[str, Any], progress: Progress) -> None:
        """Check what is asked for, then write, column by column, token by token."""
        chat = asked["mode"] == "chat"
        ids = prompt_ids(self.tokenizer, asked["prompt"], chat)
        for label, model in self.models.items():
            check_length(label, model, ids, asked["new_tokens"])
        self.writers = [
            Writer(label, model, ids, _picker(asked)) for label, model in self.models.items()
        ]
        before = "" if chat else asked["prompt"]
        write_answers(self.writers, asked["new_tokens"], progress, lambda: self._show(before))

    def _show(self, before: str) -> None:
        """Every column as far as its model is."""
        for writer in self.writers:
            done = writer.ended or writer.of_first is not None
            text = self._text(writer, done)
            first = self.writers[0].label
            if writer.label in self.columns:  # it may have been removed meanwhile
                note = _facts(writer, first)
                self.columns[writer.label].value = _column(writer.label, before, text, note)

    def _text(self, writer: Writer, done: bool) -> str:
        return answer_text(self.tokenizer, writer.ids, writer.new, done)


def _picker(asked: Mapping[str, Any]) -> Callable[[Tensor], int]:
    """How tokens are chosen; each model draws from the same seed."""
    if asked["way"] == "greedy":
        return greedy
    return sampler(asked["temperature"], asked["seed"])


def _controls(tokenizer: Any, **start: Any) -> dict[str, ipywidgets.Widget]:
    """Prompt, mode, length and choice of tokens, by name. Raises BadParameter."""
    chat = bool(start["chat"])
    if chat and not has_template(tokenizer):
        raise BadParameter("chat=True is not possible, the tokenizer has no template: leave it out")
    tokens = check_whole("new_tokens", start["new_tokens"])
    temperature = start["temperature"]
    wide = ipywidgets.Layout(width="min(720px, 98%)")
    seed = check_whole("seed", start["seed"], least=0)
    most, heat = max(MOST_TOKENS, tokens), 0.8 if temperature is None else temperature
    return {
        "prompt": ipywidgets.Textarea(start["prompt"], description="prompt", rows=3, layout=wide),
        "mode": choice(MODES, MODES[chat], "mode"),
        "new_tokens": slider(ipywidgets.IntSlider, tokens, "new tokens", min=1, max=most),
        "way": choice(WAYS, WAYS[temperature is not None], "next token"),
        "temperature": slider(
            ipywidgets.FloatSlider, heat, "temperature", min=0.1, max=2.0, step=0.1
        ),
        "seed": ipywidgets.BoundedIntText(seed, max=2**31 - 1, description="seed"),
    }


def _column(label: str, before: str, text: str, note: str) -> str:
    """One model's column: its label, the prompt in grey with what follows, and the facts."""
    frame = "border-left:3px solid var(--jp-border-color1,#bdbdbd);padding:0 0 0 10px"
    body = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.45;margin:2px 0"
    grey = f'<span style="opacity:0.65">{html.escape(before)}</span>'
    return (
        f'<div style="{frame}"><b>{html.escape(label)}</b>'
        f'<div style="{body}">{grey}{html.escape(text)}</div>'
        f'<div style="opacity:0.75;line-height:1.3">{html.escape(note)}</div></div>'
    )


def _facts(writer: Writer, first: str) -> str:
    """Tokens, speed, and how surprised the model is by its own answer and by the first one's."""
    count = len(writer.new)
    if not count:
        return ""
    facts = [f"{count} token{'s' if count > 1 else ''}{', ended' if writer.ended else ''}"]
    facts.append(f"{count / writer.seconds:.1f} tokens/s")
    facts.append(f"perplexity of its own answer {writer.perplexity:.2f}")
    if writer.of_first is not None:
        facts.append(f"of {first}'s answer {writer.of_first:.2f}")
    return " · ".join(facts)


def _as_table(frame: pd.DataFrame, prompt: str) -> Styler:
    """The answers as a table that shows their line breaks and nothing as markup."""
    numbers = [name for name in frame.columns if name not in ("answer", "tokens")]
    style = frame.style.format(escape="html").format("{:.2f}", subset=numbers)
    style = style.format_index(escape="html").format_index(escape="html", axis=1)
    left = {"text-align": "left", "white-space": "pre-wrap", "max-width": "44em"}
    return style.set_properties(subset=["answer"], **left).set_caption(html.escape(prompt))


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
    start = {"prompt": prompt, "new_tokens": new_tokens, "temperature": temperature}
    return TryIt(models, tokenizer, tokens, **start, seed=seed, chat=chat)
