"""Zero-shot scoring that runs every shared beginning of its texts once.

A request is a context with a continuation: how likely does the model find the continuation? The
choices of an item share their context, so requests overlap. lm-eval's own model (`HFLM`) runs each
of them whole. Here they become **trees of tokens** (tries, prefix trees): a node is a token after
one beginning, however many texts begin so. A model runs a tree as one sequence

- in which a token attends to its ancestors alone, by a mask,
- and has the position that it has in its text, which is its depth in the tree,

so each token sees what it sees in a text of its own. Trees of unlike texts lie side by side in a
pass, each with attention of its own. Nothing is padded, no cache is copied, and logits over the
vocabulary are computed only where a token of a continuation is predicted. (Tree attention as such
is known from speculative decoding: Miao et al. 2023, arXiv 2305.09781.)
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from helpers.model.models import device_of

# what a block may look at of earlier tokens, in the words of configs ("global" is GPT-Neo's): all
# of them, or those in a window. A recurrence or a convolution looks at neighbours in the sequence
ATTENTION = {"full_attention", "sliding_attention", "global"}
PASS = 128  # tokens of a pass for each text of a batch: a CPU is slower with less
TREE = 128  # tokens of a tree, if its contexts are shorter: in a larger one most scores are masked
# log p of a continuation, and whether greedy decoding would write it
Answer = tuple[float, bool]


class TreeLM(HFLM):
    """lm-eval's model, with the same log-likelihoods up to rounding.

    trees: whether the model can run trees; if not, HFLM scores everything. A text that is too long
    for the model goes to HFLM too, which cuts and reports it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.trees = runs_trees(self.model)

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: list, **options: Any) -> list[Answer]:
        """The answer to each request: (texts, tokens of the context, of the continuation)."""
        answers = {}
        rest = dict(enumerate(requests))
        if self.trees:
            longest = self.max_length + 1  # the last token is predicted and not read
            fitting = {i: r for i, r in rest.items() if len(r[1] + r[2]) <= longest}
            for pack in packs(fitting, PASS * self.batch_size):
                found = self._score([rest.pop(i) for i in pack])
                answers |= zip(pack, found, strict=True)
        found = super()._loglikelihood_tokens(list(rest.values()), **options)
        answers |= zip(rest, found, strict=True)
        return [answers[i] for i in range(len(requests))]

    def _score(self, requests: list) -> list[Answer]:
        """The answers to requests that share a pass."""
        trees, places, targets, start = [], [], [], 0
        # in their order, since `packs` has put them into it
        for keys in packs(dict(enumerate(requests)), TREE):
            trees.append(tree := Tree())
            for key in keys:
                _, context, tokens = requests[key]
                path = tree.add(context + tokens[:-1])
                places += [start + node for node in path[-len(tokens) :]]
                targets += tokens
            start += len(tree.nodes)
        # a place whose logits several texts need is computed once
        kept, rows = torch.tensor(places).unique(return_inverse=True)
        logits = run_trees(self.model, trees, kept)
        wanted = torch.stack([rows, torch.tensor(targets)]).to(logits.device)
        ends = [len(tokens) for *_, tokens in requests]
        logs, written = [], []
        # a text at a time: of all of them, log-probabilities would take as much memory as logits
        for own, tokens in wanted.split(ends, dim=-1):
            part = logits[own]
            every = part.log_softmax(-1, dtype=self.softmax_dtype)
            logs.append(every.gather(-1, tokens[:, None]).sum())
            written.append((part.argmax(-1) == tokens).all())
        found = torch.stack(logs).tolist(), torch.stack(written).tolist()
        return list(zip(*found, strict=True))


class Tree:
    """Texts as a tree of tokens, with one root for each first token.

    nodes: the number of a node by its parent (-1 for a root) and its token, in the order of their
    numbers; a node comes after its parent.
    """

    def __init__(self) -> None:
        self.nodes: dict[tuple[int, int], int] = {}

    def add(self, text: Sequence[int]) -> list[int]:
        """The nodes of a text's tokens; those that the tree lacks are made."""
        path = [-1]
        for token in text:
            path.append(self.nodes.setdefault((path[-1], token), len(self.nodes)))
        return path[1:]

    def seen(self) -> Tensor:
        """bool (nodes, nodes): whether the row's token attends to the column's."""
        seen = torch.eye(len(self.nodes), dtype=torch.bool)
        # a token sees itself and all that its parent sees
        for node, (parent, _) in enumerate(self.nodes):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


@dataclass
class WithinTrees(TorchFunctionMode):
    """Attention of each tree in a pass by itself: what the mask leaves of it, in less time.

    sizes: nodes of each tree.
    """

    sizes: list[int]

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        mask = kwargs.get("attn_mask")
        if function is not scaled_dot_product_attention or mask is None:
            return function(*args, **kwargs)
        parts, end = [], 0
        for size in self.sizes:
            own = slice(end, end := end + size)
            kwargs["attn_mask"] = mask[..., own, own]
            parts.append(function(*(part[..., own, :] for part in args), **kwargs))
        return torch.cat(parts, dim=-2)


def run_trees(model: nn.Module, trees: Sequence[Tree], kept: Tensor) -> Tensor:
    """A model's logits (len(kept), vocabulary) at some nodes of trees, in one pass.

    kept: numbers of nodes, where those of a tree follow those of the tree before it.
    """
    config = model.config.get_text_config(decoder=True)
    device = device_of(model)
    full = torch.block_diag(*(tree.seen() for tree in trees))
    depths = full.sum(-1) - 1  # the tokens before it are its ancestors
    window = getattr(config, "sliding_window", None) or len(full)
    # how far back an ancestor lies is a difference of depths
    near = full & (depths[:, None] - depths < window)
    kinds = {"sliding_attention": near}
    if mixed := "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        kinds["full_attention"] = full
    masks = {}
    for kind, seen in kinds.items():
        # what is added to attention scores (1, heads, tokens, tokens); it replaces the model's own
        mask = torch.where(seen, 0.0, torch.finfo(model.dtype).min)
        masks[kind] = mask[None, None].to(device, model.dtype)
    tokens = [token for tree in trees for _, token in tree.nodes]
    # a GPU waits longer for many small products than for one
    sizes = [len(tree.nodes) for tree in trees] if device.type == "cpu" else [len(full)]
    with WithinTrees(sizes):
        output = model(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=depths[None].to(device),
            attention_mask=masks if mixed else masks["sliding_attention"],
            use_cache=False,
            logits_to_keep=kept.to(device),
        )
    return output.logits[0]


def runs_trees(model: nn.Module) -> bool:
    """Whether a model gives a tree's tokens the logits that they have in texts of their own.

    Families that compute positions themselves (ALiBi in Bloom and MPT), mix neighbours in the
    sequence (Mamba) or have a window of their own making (GPT-Neo) do not. What no config says is
    tried: two texts with one beginning.
    """
    config = model.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None)
    kinds = kinds or getattr(config, "attention_layers", None) or ()
    if not ATTENTION.issuperset(kinds):
        return False
    device = device_of(model)
    tree = Tree()
    texts = [[3, 4, 5, 6], [3, 4, 7, 8]]
    ends = torch.tensor([tree.add(text)[-1] for text in texts])
    with torch.no_grad():
        own = model(torch.tensor(texts, device=device), use_cache=False).logits[:, -1]
        # what a model sees that takes the tree for a plain text
        plain = torch.tensor([[3, 4, 5, 6, 7, 8]], device=device)
        wrong = model(plain, use_cache=False).logits[0, ends]
        try:
            found = run_trees(model, [tree], ends)
        except (TypeError, ValueError, RuntimeError):  # it takes no such mask
            return False
    return bool((found - own).norm() < 0.1 * (wrong - own).norm())


def packs(requests: Mapping[int, tuple], size: int) -> list[list[int]]:
    """Keys of requests by the pass that they share, of `size` tokens at most.

    What follows one context stays together, and is a pass of its own if it is longer. Contexts that
    begin alike are neighbours, and may share more.
    """
    followers = defaultdict(list)
    for key, (_, context, _) in requests.items():
        followers[tuple(context)].append(key)
    found: list[list[int]] = []
    left = 0
    for context, keys in sorted(followers.items()):
        tokens = len(context) + sum(len(requests[key][2]) - 1 for key in keys)
        if tokens > left:
            found.append([])
            left = size
        found[-1] += keys
        left -= tokens
    return found
