"""Explorer of models: type a prompt and read what several models answer, side by side.

The models write one after another, in a thread that can be stopped, by their own `generate`.
"""

from __future__ import annotations

import copy
import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
import torch
from IPython.display import HTML
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from helpers.capture import Progress, check_length, check_tokens
from helpers.errors import BadParameter, NonFinite, OutOfMemory, Stopped, check_whole
from helpers.explore.controls import Worker, choice, row, slider
from helpers.machine import ram
from helpers.methods import METHODS
from helpers.models import WEIGHT_READER, device_of
from helpers.prune import prune_model

MOST_TOKENS = 400  # the slider's end
TARGETS = {f"{percent} %": {"sparsity": percent / 100} for percent in range(20, 95, 10)}
TARGETS |= {pattern: {"pattern": pattern} for pattern in ("2:4", "4:8")}
HALF_CHARACTER = "\ufffd"  # what the bytes of an unfinished character are decoded to
COLUMN = "border-left: 3px solid var(--jp-border-color1, #bdbdbd); padding-left: 10px"
TEXT = "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.45"


class Picker(LogitsProcessor):
    """Called by `generate` before each token: reports those before it, and makes the choice random.

    The largest of logit / temperature + Gumbel noise is a draw from softmax(logits / temperature),
    and minus the logarithm of an exponential variable is Gumbel noise. With temperature 0 the
    choice stays greedy. The noise is made on the CPU: a seed means the same on every device.
    """

    def __init__(
        self, report: Callable[[list[int]], None], label: str, temperature: float, seed: int
    ) -> None:
        self.report, self.label, self.temperature = report, label, temperature
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The logits (1, vocabulary), of which `generate` then takes the largest."""
        self.report(ids[0].tolist())
        if not math.isfinite(logits.max()):  # NaN is the largest of any
            raise NonFinite(
                f"{self.label} gives NaN or infinity instead of logits: load it as float32, or "
                "prune it less"
            )
        noise = torch.empty(logits.shape).exponential_(generator=self.generator).clamp_(min=1e-30)
        return logits - self.temperature * noise.log_().to(logits.device)


class Answer(ipywidgets.HTML):
    """One model's column: its label, the prompt that it continues, and what it has written."""

    def __init__(self, label: str, model: nn.Module) -> None:
        layout = {"flex": "1 1 280px", "min_width": "0", "margin": "6px 12px 0 0"}
        super().__init__(layout=layout)
        self.label, self.model = label, model
        self.written: list[int] = []  # tokens
        self.show("", "")

    def show(self, before: str, text: str) -> None:
        """Show a text and, in grey, what stands before it."""
        label, before, text = map(html.escape, (self.label, before, text))
        self.value = (
            f'<div style="{COLUMN}"><b>{label}</b><div style="{TEXT}">'
            f'<span style="opacity: 0.65">{before}</span>{text}</div></div>'
        )


def prompt_ids(tokenizer: Any, prompt: str, chat: bool) -> list[int]:
    """The token ids of a prompt, in the tokenizer's chat template if `chat`.

    Raises BadParameter for an empty prompt.
    """
    if not prompt.strip():
        raise BadParameter("the prompt is empty: type some words to be continued or answered")
    if not chat:
        return list(tokenizer(prompt).input_ids)
    messages = [{"role": "user", "content": prompt}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return list(asked["input_ids"])


def pruned_copy(model: nn.Module, tokens: Tensor, **choices: Any) -> nn.Module:
    """A pruned copy of a model, which itself stays as it is.

    Args: tokens, int64 (sequences, length); choices, as `prune_model` takes them (method,
    sparsity or pattern, progress, options). Raises what `prune_model` raises, and OutOfMemory if
    the copy would not leave as much memory free as it takes.
    """
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    free, _ = ram()
    if device_of(model).type == "cpu" and free < 2 * size:
        raise OutOfMemory(
            f"a copy takes {size / 1e9:.1f} GB and its pruning as much, {free / 1e9:.1f} GB are "
            "free: close other kernels"
        )
    copied = copy.deepcopy(model)
    try:
        prune_model(copied, tokens, **choices)
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
        self.answers: dict[str, Answer] = {}
        self.tokenizer, self.tokens, self.controls = tokenizer, tokens, controls
        self.worker, self.pruning = Worker(), Worker()
        self.columns = row()
        self.columns.layout.align_items = "flex-start"
        for label, model in models.items():
            self.add(label, model)
        self.button = ipywidgets.Button(description="Generate", icon="play", button_style="primary")
        self.button.on_click(lambda _button: self.generate())
        prompt, *others = controls.values()
        super().__init__([prompt, row(*others), row(self.button, self.worker), self.columns])
        if tokens is not None:
            self.method = choice(list(METHODS), "admm-grad", "method")
            self.target = choice(list(TARGETS), "60 %", "target")
            self.prune_button = ipywidgets.Button(description="Prune a copy", icon="scissors")
            self.prune_button.on_click(lambda _button: self.prune())
            self.children += (row(self.method, self.target, self.prune_button, self.pruning),)

    def add(self, label: str, model: nn.Module) -> None:
        """Show one more model in a column of its own; an older one of that label is replaced.

        Raises BadParameter for what is not a model in memory.
        """
        if not isinstance(model, nn.Module) or hasattr(model, WEIGHT_READER):
            raise BadParameter(
                f"{label!r} is a {type(model).__name__}, or a model that is read block by block: "
                "give one that load_model returned"
            )
        self.answers[label] = Answer(label, model)
        self.columns.children = tuple(self.answers.values())

    def generate(self) -> None:
        """Let the models answer in a thread, as the button does."""
        values = self._values()
        self.worker.start(lambda: self._answer(self.worker.progress, **values))

    def prune(self) -> None:
        """Prune a copy of the first model in a thread and add it, as the button does."""
        method, target, worker = self.method.value, self.target.value, self.pruning
        first = next(iter(self.answers.values())).model

        def work() -> None:
            worker.progress(0, 1, "copying the model")
            choices = {"method": method, "progress": worker.progress, **TARGETS[target]}
            self.add(f"{method} {target}", pruned_copy(first, self.tokens, **choices))

        worker.start(work)

    def still(self, prompt: str | None = None) -> HTML:
        """The static twin: what each model answers, computed here and now.

        Takes the controls' values, with another prompt if one is given.
        Raises BadParameter, NonFinite.
        """
        values = self._values() | ({} if prompt is None else {"prompt": prompt})
        self._answer(lambda _done, _total, _name: None, **values)
        return HTML("<br>".join(answer.value for answer in self.answers.values()))

    def _values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.controls.items()}

    def _answer(
        self,
        progress: Progress,
        *,
        prompt: str,
        chat: bool,
        new_tokens: int,
        temperature: float,
        seed: int,
    ) -> None:
        """Check what is asked for, then let one model after another write, token by token."""
        ids, answers = prompt_ids(self.tokenizer, prompt, chat), list(self.answers.values())
        asked, before = torch.tensor([ids]), "" if chat else prompt
        for answer in answers:
            try:
                check_tokens(answer.model, asked)
                check_length(answer.model, len(ids) + new_tokens)
            except BadParameter as error:
                raise BadParameter(f"{answer.label}, prompt and answer: {error}") from None
        for answer in answers:
            answer.written = []
            answer.show(before, "")
        for done, answer in enumerate(answers):

            def report(whole: list[int], answer: Answer = answer, done: int = done) -> None:
                answer.written = whole[len(ids) :]
                answer.show(before, answer_text(self.tokenizer, ids, whole))
                count = done * new_tokens + len(answer.written)
                progress(count, new_tokens * len(answers), f"{answer.label} is writing")

            picker = Picker(report, answer.label, temperature, seed)
            given = asked.to(device_of(answer.model))
            whole = answer.model.generate(
                given,
                attention_mask=torch.ones_like(given),
                logits_processor=LogitsProcessorList([picker]),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
            report(whole[0].tolist())


def answer_text(tokenizer: Any, ids: Sequence[int], whole: Sequence[int]) -> str:
    """The text that follows a prompt, without special tokens and without an unfinished character.

    ids: of the prompt; whole: of prompt and answer. Both are decoded from the beginning: alone, an
    answer could lose its first space.
    """
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before, text = tokenizer.decode(list(ids), **plain), tokenizer.decode(list(whole), **plain)
    return text.removeprefix(before).rstrip(HALF_CHARACTER)


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

    Args: models by label; their tokenizer; then where the controls start: temperature None or 0 is
    greedy; chat uses the tokenizer's template, if it has one. With tokens, int64 (sequences,
    length), copies of the first model can be pruned as well. Greedy answers are those of the
    model's `generate(do_sample=False)`. `still()` is the static twin. Raises BadParameter.
    """
    if not models:
        raise BadParameter('models is empty: give {"dense": model} from load_model, or several')
    can_chat = bool(getattr(tokenizer, "chat_template", None))
    if chat and not can_chat:
        raise BadParameter("chat=True is not possible, the tokenizer has no template: leave it out")
    most = max(MOST_TOKENS, check_whole("new_tokens", new_tokens))
    controls = {
        "prompt": ipywidgets.Textarea(
            prompt, description="prompt", rows=3, layout={"width": "min(720px, 98%)"}
        ),
        "chat": ipywidgets.Checkbox(
            chat, description="chat", indent=False, disabled=not can_chat, layout={"width": "auto"}
        ),
        "new_tokens": slider("new tokens", new_tokens, 1, most),
        "temperature": slider("temperature", temperature or 0.0, 0, 2, step=0.1),
        "seed": ipywidgets.BoundedIntText(
            check_whole("seed", seed, least=0), max=2**31 - 1, description="seed"
        ),
    }
    return TryIt(models, tokenizer, tokens, controls)
