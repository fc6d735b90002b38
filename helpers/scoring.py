"""A question is read once, and each of its choices from there.

lm-eval's own model (`HFLM`) runs a question again for each of its choices. Here one forward pass
reads what all of them follow (their context) and keeps each block's keys and values; the choices go
on from there. Logits over the vocabulary are computed only from where a choice is scored. All else,
from tokens to the sum of log-likelihoods, is HFLM's.

No text is padded on the left, since families of models differ in how they treat that. Contexts that
share a pass are read up to the last token but one of the shortest, and the rest of a context is
repeated in front of each of its choices. (The last token's logits score a choice's first token.) A
context with one text after it, or so short that a pass more would cost more, is read with its text.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from helpers.device import attribute
from helpers.models import cache_of

# a pass takes as long as its tokens and so many more, because it reads all weights: a context is
# read by itself, and texts of unlike length get passes of their own, only where that saves more
PASS = 48


class ContextOnce(HFLM):
    """lm-eval's model, with the same log-likelihoods up to rounding.

    All is left to HFLM for a model whose cache cannot be shared (`helpers.models.cache_of`), and so
    is a text that is too long for the model, which HFLM cuts and reports.
    """

    # what the model is given beside its tokens; None where HFLM works alone
    given: dict[str, Any] | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.cache = cache_of(self.model)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: list, **options: Any
    ) -> list[tuple[float, bool]]:
        """For each request log p of its continuation, and whether the model would write that."""
        contexts = defaultdict(lambda: defaultdict(list))
        for index, (_, context, tokens) in enumerate(requests):
            if self.cache and len(context) + len(tokens) < self.max_length:
                # the last token is predicted and not read: choices of one token are one text
                contexts[tuple(context)][tuple(tokens[:-1])].append(index)
        # is the context read by itself, the length that counts in a pass, the context, its requests
        items = []
        for context, texts in contexts.items():
            if (len(texts) - 1) * (len(context) - 1) > PASS:
                items.append((True, len(context), context, sum(texts.values(), [])))
            else:
                items += [
                    (False, len(context + text), context, texts[text]) for text in texts
                ]
        batches: list[list[Any]] = [[]]
        for item in sorted(items, reverse=True):
            last = batches[-1]
            # tokens that are padded, or repeated in front of choices
            more = sum(len(indices) * (last[-1][1] - item[1]) for *_, indices in last)
            if last and (
                item[0] < last[0][0] or len(last) == self.batch_size or more > PASS
            ):
                batches.append(last := [])
            last.append(item)
        answers = {}
        for batch in filter(None, batches):
            cut, given = 0, {}
            if batch[0][0]:
                cut = len(batch[-1][2]) - 1
                start = torch.tensor(
                    [text[:cut] for *_, text, _ in batch], device=self.device
                )
                given[self.cache] = self.model(start, use_cache=True, logits_to_keep=1)[
                    self.cache
                ]
            # in front of its tokens stand two numbers for `_model_call`: the context's row in the
            # cache, and the place of its last token, whose logits are the first that count
            marked = {
                i: (
                    ("", ""),
                    [row, len(context) - 1 - cut, *context[cut:]],
                    requests[i][2],
                )
                for row, (_, _, context, indices) in enumerate(batch)
                for i in indices
            }
            with attribute(self, "given", given):
                found = super()._loglikelihood_tokens([*marked.values()], **options)
            answers |= zip(marked, found, strict=True)
        others = [
            request for index, request in enumerate(requests) if index not in answers
        ]
        rest = iter(super()._loglikelihood_tokens(others, **options))
        return [answers.get(index) or next(rest) for index in range(len(requests))]

    def _model_call(self, inps: torch.Tensor, **options: Any) -> torch.Tensor:
        """Logits (texts, places, vocabulary) of the last places; HFLM counts them from the end."""
        if self.given is None:
            return super()._model_call(inps, **options)
        # the pass adds to the cache
        tokens, given = (
            inps[:, 2:],
            copy.deepcopy(self.given),
        )
        for cache in given.values():
            cache.reorder_cache(inps[:, 0])
        scored = tokens.shape[1] - int(inps[:, 1].min())
        return self.model(
            tokens, use_cache=bool(given), logits_to_keep=scored, **given
        ).logits
