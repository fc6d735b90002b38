"""Zero-shot scoring that reads the context of an item's choices once.

lm-eval's own model (`HFLM`) runs the context again for each choice. Here one forward pass reads the
context and keeps each block's keys and values; the choices go on from there. Logits over the
vocabulary are computed only where a choice is scored. The rest, from tokens to the sum of
log-likelihoods, is HFLM's.

No text is padded on the left, since families of models differ in how they treat that. Contexts that
share a pass are read up to the last token but one of the shortest, and the rest of a context is
repeated in front of each of its choices. (The last token's logits score a choice's first token.) A
context with one text after it, or so short that a pass more would cost more, is read with its text.
"""

import copy
from collections import defaultdict
from typing import Any, NamedTuple

import torch
from lm_eval.models.huggingface import HFLM

from helpers.device import attribute
from helpers.models import cache_of

# a pass takes as long as its tokens and so many more, because it reads all weights: a context is
# read by itself, and texts of unlike length get passes of their own, only where that saves more
PASS = 48


class Item(NamedTuple):
    """A context with the continuations that are scored in one pass after it.

    once: whether the context is read by itself. length: of the tokens that a pass reads. requests:
    indices of those that this item answers.
    """

    once: bool
    length: int
    context: tuple[int, ...]
    requests: list[int]


class ContextOnce(HFLM):
    """lm-eval's model, with the same log-likelihoods up to rounding.

    HFLM alone scores a model whose cache cannot be shared (`helpers.models.cache_of`), and a text
    that is too long for the model, which it cuts and reports.
    """

    # the cache that a pass starts from, by the model's argument; None where HFLM works alone
    start = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.cache = cache_of(self.model)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: list, **options: Any
    ) -> list[tuple[float, bool]]:
        """For each request log p of its continuation, and whether the model would write that."""
        answers = {}
        for batch in self._batches(self._items(requests)):
            cut = 0  # tokens of each context that the cache holds
            start = {}
            if batch[0].once:
                cut = len(batch[-1].context) - 1
                start = self._read([item.context[:cut] for item in batch])
            # in front of its tokens stand two numbers for `_model_call`: the context's row in the
            # cache, and the place of its last token, whose logits are the first that count
            marked = {}
            for row, item in enumerate(batch):
                place = len(item.context) - 1 - cut
                rest = [row, place, *item.context[cut:]]
                for index in item.requests:
                    continuation = requests[index][2]
                    marked[index] = (("", ""), rest, continuation)
            texts = list(marked.values())
            with attribute(self, "start", start):
                found = super()._loglikelihood_tokens(texts, **options)
            answers |= zip(marked, found, strict=True)
        others = [index for index in range(len(requests)) if index not in answers]
        found = super()._loglikelihood_tokens(
            [requests[index] for index in others], **options
        )
        answers |= zip(others, found, strict=True)
        return [answers[index] for index in range(len(requests))]

    def _items(self, requests: list) -> list[Item]:
        """The requests by their context, without texts that are too long for the model."""
        contexts = defaultdict(lambda: defaultdict(list))
        for index, (_, context, tokens) in enumerate(requests):
            length = len(context) + len(tokens)
            if self.cache and length < self.max_length:
                # the last token is predicted and not read: choices of one token are one text
                text = tuple(tokens[:-1])
                contexts[tuple(context)][text].append(index)
        items = []
        for context, texts in contexts.items():
            repeats = len(texts) - 1
            if repeats * (len(context) - 1) > PASS:
                every = [index for indices in texts.values() for index in indices]
                items.append(Item(True, len(context), context, every))
                continue
            for text, indices in texts.items():
                items.append(Item(False, len(context + text), context, indices))
        return items

    def _batches(self, items: list[Item]) -> list[list[Item]]:
        """Items of like length together, each batch for one pass."""
        batches = []
        for item in sorted(items, reverse=True):
            last = batches[-1] if batches else []
            # tokens that are padded, or repeated in front of choices
            more = sum(
                len(other.requests) * (last[-1].length - item.length) for other in last
            )
            fits = last and item.once == last[0].once and len(last) < self.batch_size
            if fits and more <= PASS:
                last.append(item)
            else:
                batches.append([item])
        return batches

    def _read(self, contexts: list[tuple[int, ...]]) -> dict:
        """The model's cache after contexts of one length."""
        tokens = torch.tensor(contexts, device=self.device)
        output = self.model(tokens, use_cache=True, logits_to_keep=1)
        return {self.cache: output[self.cache]}

    def _model_call(self, inps: torch.Tensor, **options: Any) -> torch.Tensor:
        """Logits (texts, places, vocabulary) of the last places; HFLM counts them from the end."""
        if self.start is None:
            return super()._model_call(inps, **options)
        rows = inps[:, 0]
        places = inps[:, 1]
        tokens = inps[:, 2:]
        start = copy.deepcopy(self.start)  # the pass adds to the cache
        for cache in start.values():
            cache.reorder_cache(rows)
        first = int(places.min())
        output = self.model(
            tokens,
            use_cache=bool(start),
            logits_to_keep=tokens.shape[1] - first,
            **start,
        )
        return output.logits
