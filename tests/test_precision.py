"""Products in bfloat16: in the passes of the text, and nowhere else."""

import copy

import families as fam
import pytest
import torch

from helpers import METHODS, precision, prune_model, register
from helpers.errors import BadParameter
from helpers.gram import Gram, gram_of
from helpers.models import find_blocks, find_layers

CPU = torch.device("cpu")
ASKED = dict(method="wanda", sparsity=0.5, batch=2)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_are_fitted_to_what_bfloat16_gives(family: str, passes: int) -> None:
    tokens, model = fam.random_tokens(8), fam.build(family)
    by_hand, exact = copy.deepcopy(model), copy.deepcopy(model)
    prune_model(model, tokens, passes=passes, precision="bfloat16", **ASKED)
    prune_model(exact, tokens, passes=passes, **ASKED)
    names = fam.pruned_names(family)
    width = len(fam.FAMILIES[family].layers)
    with autocast():  # the model's own pass
        order = list(fam.inputs_by_hook(by_hand, names, tokens))
    groups = [[name] for name in order]
    if passes == 2:
        groups = [names[start : start + width] for start in range(0, len(names), width)]
    for group in groups:
        with autocast():
            inputs = fam.inputs_by_hook(by_hand, group, tokens)
        for name in group:
            weight = fam.matrix_of(by_hand.get_submodule(name)).detach()
            pruned = METHODS["wanda"](weight.clone(), gram_of(inputs[name]), sparsity=0.5)
            with torch.no_grad():
                weight.copy_(pruned.weight)
    masks = [
        torch.cat([(m.get_submodule(name).weight != 0).flatten() for name in names])
        for m in (model, by_hand, exact)
    ]
    near, far = ((masks[0] == other).float().mean().item() for other in masks[1:])
    assert near > 0.995 and near > far
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("passes", [1, 2])
def test_grams_and_methods_are_in_float32(passes: int, registry) -> None:
    seen: list[bool] = []

    @register("test-only")
    def method(weight, gram, *, sparsity, pattern, keep=None):
        seen.append(torch.is_autocast_enabled("cpu"))
        return METHODS["wanda"].__wrapped__(weight, gram, sparsity=sparsity, pattern=pattern)

    asked = ASKED | {"method": "test-only", "precision": "bfloat16", "passes": passes}
    prune_model(fam.build(), fam.random_tokens(), **asked)
    assert len(seen) > 14 and not any(seen) and not torch.is_autocast_enabled("cpu")
    rows = torch.randn(50, 20)
    gram = Gram(20)
    with autocast():
        gram.add(rows)
    torch.testing.assert_close(gram.matrix, rows.T @ rows)


@pytest.mark.parametrize("faster", [True, False])
def test_auto_is_what_is_faster_here(faster: bool, monkeypatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_is_faster", lambda _device: faster)
    model, tokens = fam.build(), fam.random_tokens()
    kinds = set()
    layer = find_layers(find_blocks(model)[0])["mlp.down_proj"]
    # the parity gate and the recording of arguments are the model's own
    layer.register_forward_hook(lambda _layer, _args, out: kinds.add(out.dtype))
    prune_model(model, tokens, precision="auto", **ASKED)
    assert (torch.bfloat16 in kinds) == faster and torch.float32 in kinds


def test_a_model_in_half_precision_has_its_own(one_line_error) -> None:
    assert precision.precision_for(torch.float16, "auto", CPU) == "float32"
    assert precision.precision_for(torch.float32, "bfloat16", CPU) == "bfloat16"
    model = fam.build().half()
    before = fam.snapshot(model)
    with one_line_error(BadParameter, "float16", "leave it out"):
        prune_model(model, fam.random_tokens(), precision="bfloat16", **ASKED)
    for wrong in ("int8", ""):
        with one_line_error(BadParameter, "precision", "bfloat16"):
            prune_model(model, fam.random_tokens(), precision=wrong, **ASKED)
    assert not fam.changed(model, before)
