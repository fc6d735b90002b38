"""Explorer of models: type a prompt and read what several models answer, side by side.

The models write one after another, in a thread that can be stopped, by their own `generate`.
"""

import copy
import html
from collections.abc import Mapping
from typing import Any

import ipywidgets
import torch
from IPython.display import HTML
from torch import Tensor, nn
from transformers import TextStreamer

from helpers.errors import BadParameter, NonFinite, OutOfMemory
from helpers.explore.controls import Worker, choice, row, slider
from helpers.memory import ram
from helpers.model.models import check_length, device_of
from helpers.model.prune import prune_model
from helpers.paper.methods import METHODS
from helpers.progress import Progress

MOST_TOKENS = 400  # the slider's end
# by label: sparsity and pattern
TARGETS = {
    f"{percent} %": (percent / 100, "unstructured") for percent in range(20, 95, 10)
}
TARGETS |= {"2:4": (None, "2:4"), "4:8": (None, "4:8")}
COLUMN = "border-left: 3px solid var(--jp-border-color1, #bdbdbd); padding-left: 10px"
TEXT = "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.45"


class Answer(ipywidgets.HTML):
    """One model's column: its label, the prompt that it continues, and what it has written."""

    def __init__(self, label: str, model: nn.Module) -> None:
        super().__init__(
            layout={"flex": "1 1 280px", "min_width": "0", "margin": "6px 12px 0 0"}
        )
        self.label = label
        self.model = model
        self.prompt = ""
        self.show("")

    def show(self, text: str) -> None:
        """Show a text; the prompt that it begins with, if it does, is grey."""
        grey = self.prompt if text.startswith(self.prompt) else ""
        self.value = (
            f'<div style="{COLUMN}"><b>{html.escape(self.label)}</b><div style="{TEXT}">'
            f'<span style="opacity: 0.65">{html.escape(grey)}</span>'
            f"{html.escape(text.removeprefix(grey))}</div></div>"
        )


class ColumnStreamer(TextStreamer):
    """Shows in a model's column what `generate` has written so far.

    progress(done, total, name) is called after each token, and ends `generate` by raising.
    """

    def __init__(
        self,
        tokenizer: Any,
        answer: Answer,
        chat: bool,
        *,
        progress: Progress,
        done: int,
        total: int,
    ) -> None:
        # without a template the prompt is decoded with the answer, which alone could lose its
        # first space
        super().__init__(tokenizer, skip_prompt=chat, skip_special_tokens=True)
        self.answer = answer
        self.text = ""
        self.progress = progress
        self.done = done
        self.total = total

    def put(self, value: Tensor) -> None:
        """Called by `generate` with the prompt, then with each new token."""
        super().put(value)
        self.progress(self.done, self.total, f"{self.answer.label} is writing")
        self.done += 1

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by `put` and `end` with the text that is new."""
        self.text += text
        # a model that has nothing more to say may fill a screen with empty lines
        self.answer.show(self.text.rstrip())


def refuse_nan(_ids: Tensor, logits: Tensor) -> Tensor:
    """The logits (1, vocabulary) as they are; NonFinite for NaN, which would pass for a score.

    Sampled on a GPU it would make the GPU unusable for the kernel.
    """
    if not logits.max().isfinite():  # NaN is the largest of any
        raise NonFinite(
            "a model gives NaN or infinity instead of logits: load it as float32, or prune it less"
        )
    return logits


class TryIt(ipywidgets.VBox):
    """Type a prompt and read what the models answer side by side, token by token, with Stop.

    Answers are greedy until the temperature is raised. "as a chat message" puts the prompt into the
    tokenizer's template, if it has one.

    Args:
        models: by label; tokenizer: theirs.
        prompt, new_tokens: where the controls start.
        tokens: int64 (sequences, length); with these, copies of the first model can be pruned.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        tokenizer: Any,
        *,
        prompt: str = "The capital of France is",
        new_tokens: int = 40,
        tokens: Tensor | None = None,
    ) -> None:
        self.answers = {label: Answer(label, model) for label, model in models.items()}
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.worker = Worker()
        self.columns = row(*self.answers.values())
        self.columns.layout.align_items = "flex-start"
        self.button = ipywidgets.Button(
            description="Generate", icon="play", button_style="primary"
        )
        self.button.on_click(lambda _button: self.generate())
        field = ipywidgets.Textarea(
            prompt, description="prompt", rows=3, layout={"width": "min(720px, 98%)"}
        )
        chat = ipywidgets.Checkbox(
            description="as a chat message",
            indent=False,
            disabled=not tokenizer.chat_template,
            layout={"width": "auto", "margin": "2px 12px"},
        )
        sliders = {
            "new_tokens": slider("new tokens", new_tokens, 1, MOST_TOKENS),
            "temperature": slider("temperature", 0.0, 0, 2, step=0.1),
            "seed": ipywidgets.BoundedIntText(0, max=2**31 - 1, description="seed"),
        }
        self.controls = {"prompt": field, **sliders, "chat": chat}
        # the checkbox next to the button: next to a slider it would be read as a part of it
        buttons = row(self.button, chat, self.worker)
        super().__init__([field, row(*sliders.values()), buttons, self.columns])
        if tokens is not None:  # a copy can be pruned
            self.pruning = Worker()
            self.method = choice(METHODS, "admm-grad", "method")
            self.target = choice(TARGETS, "60 %", "target")
            self.prune_button = ipywidgets.Button(
                description="Prune a copy",
                icon="scissors",
                tooltip="about 1 minute for a small model, and as much memory again",
            )
            self.prune_button.on_click(lambda _button: self.prune())
            line = row(self.method, self.target, self.prune_button, self.pruning)
            self.children += (line,)

    def generate(self) -> None:
        """Let the models answer in a thread, as the button does."""
        values = {name: control.value for name, control in self.controls.items()}
        self.worker.start(lambda: self._answer(**values))

    def prune(self) -> None:
        """Prune a copy of the first model in a thread and let all answer again, as the button does.

        The copy has a column of its own; one of the same label is replaced.
        """
        method = self.method.value
        label = f"{method} at {self.target.value}"
        sparsity, pattern = TARGETS[self.target.value]
        first = next(iter(self.answers.values())).model

        def work() -> None:
            size = first.get_memory_footprint()
            free, _ = ram()
            if device_of(first).type == "cpu" and free < 2 * size:
                raise OutOfMemory(
                    f"a copy takes {size / 1e9:.1f} GB and its pruning as much, {free / 1e9:.1f} "
                    "GB are free: close other kernels"
                )
            self.pruning.progress(0, 1, "copying the model")
            pruned = copy.deepcopy(first)
            prune_model(
                pruned,
                self.tokens,
                method=method,
                sparsity=sparsity,
                pattern=pattern,
                progress=self.pruning.progress,
            )
            self.answers[label] = Answer(label, pruned)
            self.columns.children = tuple(self.answers.values())
            self.generate()

        self.pruning.start(work)

    @property
    def still(self) -> HTML:
        """The static twin: what each model answers, once it has."""
        self.generate()
        self.worker.wait()
        if self.worker.error:
            raise self.worker.error
        return HTML("<br>".join(answer.value for answer in self.answers.values()))

    def _answer(
        self, *, prompt: str, chat: bool, new_tokens: int, temperature: float, seed: int
    ) -> None:
        """In the thread: let one model after another write, token by token."""
        if not prompt.strip():
            raise BadParameter(
                "the prompt is empty: type some words to be continued or answered"
            )
        text = prompt
        if chat:
            message = {"role": "user", "content": prompt}
            text = self.tokenizer.apply_chat_template(
                [message], tokenize=False, add_generation_prompt=True
            )
        # a template brings its special tokens
        ids = self.tokenizer.encode(
            text, return_tensors="pt", add_special_tokens=not chat
        )
        answers = list(self.answers.values())
        for answer in answers:
            check_length(answer.model, ids.shape[1] + new_tokens)
            answer.prompt = prompt
            answer.show("" if chat else prompt)
        sampling = {"do_sample": temperature > 0}
        if temperature > 0:
            # from all tokens, even if the model's own settings say otherwise
            sampling |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        for number, answer in enumerate(answers):
            inputs = ids.to(device_of(answer.model))
            streamer = ColumnStreamer(
                self.tokenizer,
                answer,
                chat,
                progress=self.worker.progress,  # Stop: no other model begins
                done=number * new_tokens,
                total=len(answers) * new_tokens,
            )
            # the random numbers of what else runs in this kernel go on as if nothing had been drawn
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                torch.manual_seed(seed)
                answer.model.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    streamer=streamer,
                    logits_processor=[refuse_nan],
                    max_new_tokens=new_tokens,
                    pad_token_id=self.tokenizer.eos_token_id,
                    **sampling,
                )
