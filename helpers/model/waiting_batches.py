"""One pass: calibration text waits inside a block while its layers are pruned one by one.

A batch of text runs until it reaches a layer that is not pruned yet, and waits there. When all
batches have reached it, the gram of that layer's input is complete: the layer is pruned, and the
batches go on. So no product is computed twice, each layer is fitted to inputs that it will really
get from the pruned layers before it ("true sequential"), and what leaves the block is already the
stream of the pruned block.

A block is ordinary code that knows nothing of this. A greenlet runs it on a stack of its own, which
can be left from inside a hook and entered there again.
"""

import weakref
from collections.abc import Iterator

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from helpers.device import products
from helpers.errors import UnsupportedModel
from helpers.model.blocks import Call, check_finite, run_block, watch_inputs
from helpers.model.models import device_of, find_layers, read_weight
from helpers.paper.gram import Gram, check_measured


class Batch(greenlet):
    """A batch inside a block. `switch` runs it to the next layer that is not pruned yet."""

    def __init__(self, block: nn.Module, rows: Tensor, call: Call) -> None:
        super().__init__()
        self.block = block
        self.rows = rows
        self.call = call
        self.layer = None  # where it waits
        # the inputs of layers where it waited, by group; weakly, so that they can be freed
        self.inputs = {}
        self.answer = None

    def run(self) -> None:
        """The block, which is left whenever `wait` is called inside it."""
        self.answer = run_block(
            self.block, self.rows.to(device_of(self.block)), self.call
        )
        self.layer = None

    def wait(self, layer: str, group: tuple[str, ...], inputs: Tensor) -> None:
        """Leave the block, and come back when the layer is pruned."""
        self.layer = layer
        self.inputs[group] = weakref.ref(inputs)
        self.parent.switch()


def one_pass(
    block: nn.Module,
    stream: Tensor,
    call: Call,
    batch: int,
    name: str,
    precision: str = "float32",
) -> Iterator[dict[str, Gram]]:
    """Yield the grams of the layers that can be pruned next, until all are pruned.

    The caller prunes these layers before it takes the next. Layers that read the same input share
    a Gram and come together, as `call.inputs` says. At the end the stream (sequences, length,
    width) has been replaced by its values after the block; if an error or the caller ends it
    before, the stream is unchanged. precision: of the block's products, see `helpers.device`.

    Memory: what a block holds between two layers, for all batches at once. In Llama that is most
    at the last layer: sequences · length · (ff + 2 · width) numbers.
    Raises UnsupportedModel if a layer saw no input or batches do not run the same way, NonFinite.
    """
    layers = find_layers(block, name)
    groups = call.groups(layers)
    dense = set(layers)
    grams = {}

    def arrive(layer: str, inputs: Tensor):
        here = getcurrent()
        group = groups[layer]
        if not isinstance(here, Batch):  # not called from a batch of this pass
            return
        if layer in dense:
            if group not in grams:
                weight = read_weight(layers[layer])
                grams[group] = Gram(weight.shape[1], weight.device)
            grams[group].add(inputs)
            here.wait(layer, group, inputs)
        # a layer whose rows are not in its gram would have been fitted to other text than it gets
        elif group not in here.inputs or here.inputs[group]() is not inputs:
            raise UnsupportedModel(
                f"{name} {layer} is not given what {group[0]} was, or not in all batches: prune "
                "this model with passes=2"
            )

    batches = [Batch(block, rows, call) for rows in stream.split(batch)]
    with watch_inputs(layers, arrive):
        try:
            while True:
                # out here too: a batch switches gradients off when it starts, and back when it
                # ends, to what it found at its start
                with torch.no_grad(), products(precision, device_of(block)):
                    for one in batches:
                        if not one.dead and one.layer not in dense:
                            one.switch()
                waiting = {one.layer for one in batches}
                # in the order of definition: experts run in it, and a batch may skip some of them
                first = next((layer for layer in layers if layer in waiting), None)
                if first is None:
                    break
                group = groups[first]
                # popped: the caller frees a gram before the batches go on
                yield dict.fromkeys(group, grams.pop(group))
                dense -= set(group)
        finally:
            # end the batches that still wait, which frees what they hold
            with torch.no_grad():  # as where they were started
                for one in batches:
                    if one:  # started, and not dead
                        one.throw()
    for layer in layers:
        if layer in dense:
            check_measured(None, name, layer)
    for one in batches:
        check_finite(f"activations after {name}", one.answer)
    # only now: a stream of which a part has passed the block would be of no use
    for one in batches:
        one.rows.copy_(one.answer)
