"""`prune_model`: prune all layers of a model in place.

All arguments are checked before a weight changes (`helpers.model.checks`), and a parity gate
compares the replayed blocks with the model's own logits. The loop over blocks is in
`helpers.model.block_loop`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from helpers.errors import BadParameter
from helpers.model.block_loop import Loop, PruneReport
from helpers.model.models import check_in_memory, check_model, model_layers, state_of
from helpers.options import check_switch
from helpers.paper.layer import Sparsity
from helpers.paper.masks import Pattern
from helpers.progress import Progress

DENSE_ZEROS = 0.2  # a dense model's layers hold fewer exact zeros than that


def prune_model(
    model: nn.Module,
    tokens: Tensor | None = None,
    *,
    method: str,
    sparsity: Sparsity = None,
    pattern: str | Pattern = "unstructured",
    keep: Mapping[str, Tensor] | None = None,
    passes: int = 2,
    precision: str = "float32",
    batch: int | None = None,
    progress: Progress | bool = True,
    importance: Mapping[str, Tensor] | None = None,
    ignore: Collection[str] = (),
    allow_pruned: bool = False,
    **options: Any,
) -> PruneReport:
    """Prune all linear layers of the decoder blocks, in place.

    Args:
        tokens: int64 (sequences, length). A method that needs no calibration never reads them; its
            report then holds no errors.
        method: a name in `METHODS`, or of a file in helpers/own.
        sparsity: the fraction of weights set to zero, or one for each layer by its name
            (`helpers.beyond.allocation` makes them); left out with an N:M pattern.
        keep: a mask for each layer, by name and in the layout of `masks_of(other)`, True where a
            weight may stay. Without a sparsity all of these stay, and the method only refits them;
            with a larger sparsity it chooses its mask among them, so that no zero comes back
            (sparsegpt cannot, and a method of your own can if it has the parameter `within`). The
            report holds a hash of the masks. Those of layers in `ignore` are not read.
        passes: of the text through each block. 2 as in the paper; 1 takes less time and more memory
            (`helpers.model.waiting_batches`).
        precision: of the products with the text, for a model in float32: "float32" or "bfloat16".
            Grams and solvers are float32 always.
        batch: sequences in one forward pass, by default what suits the device. It is lowered to a
            divisor of `sequences`, and halved where memory runs out, which the report says.
        progress: True for a bar in a terminal or a notebook, False for none, or a function that is
            called after each layer: progress(done, total, name).
        importance: a factor > 0 for each output of each layer, (d_out,) by the layer's name, by
            which its weights count as larger when a mask is chosen (not within a group of N:M, nor
            with a mask budget for each output).
        ignore: layers that stay dense, as patterns of names such as "3.self_attn.q_proj" (layer
            q_proj of block 3): "*.down_proj" or "0.*". `sparsity` is that of the others, and a
            sparsity or an importance by name is given for the others only; the report's sparsity is
            that of all layers.
        allow_pruned: True to prune a model that is pruned already, or half pruned. That is refused
            otherwise, as the zeros of the first time would count as weights of the dense model.
        options: those of the method.

    Memory beyond the model, in bytes: the stream, sequences · length · width · (size of dtype); the
    grams of one block, 4 · Σ d_in² over its different inputs (Llama: three of width², one of ff²),
    or with one pass those of one input and what the block holds between two layers for all text
    (Llama: sequences · length · (ff + 2 · width) numbers); the solver's, 24 · d_out · d_in + 4 ·
    d_in² for its largest layer (32 on a GPU); and one batch of activations, in the parity gate with
    its logits.

    Raises BadParameter, UnsupportedModel, NonFinite, NotPositiveDefinite, OutOfMemory.
    """
    check_model(model, half_pruned=check_switch("allow_pruned", allow_pruned))
    check_dense(model, allow_pruned)
    return Loop(
        model,
        tokens,
        method=method,
        options=options,
        sparsity=sparsity,
        pattern=pattern,
        keep=keep,
        passes=passes,
        precision=precision,
        batch=batch,
        progress=progress,
        importance=importance,
        ignore=ignore,
    ).run()


def check_dense(model: nn.Module, allow_pruned: bool) -> None:
    """Raise unless the layers' weights are in memory and, without `allow_pruned`, dense.

    Raises UnsupportedModel, BadParameter.
    """
    # what is written to a weight that is read for each call is lost
    check_in_memory(model)
    if allow_pruned:
        return
    again = "load the dense model again, or give allow_pruned=True to prune it further"
    if state_of(model).report is not None:
        raise BadParameter(f"prune_model has pruned this model before: {again}")
    # a model pruned elsewhere, or saved and loaded, has no mark
    weights = [layer.weight for layer in model_layers(model).values()]
    check_zeros("the model's weights", weights, again)


def check_zeros(what: str, weights: Sequence[Tensor], advice: str) -> None:
    """Raise BadParameter if the share of zeros shows that the model is already pruned."""
    kept = sum(int(weight.count_nonzero()) for weight in weights)
    share = 1 - kept / sum(map(Tensor.numel, weights))
    if share >= DENSE_ZEROS:
        raise BadParameter(f"{100 * share:.0f} % of {what} are zero already: {advice}")
