"""One call for every way to prune a loaded model; what each gives is compared elsewhere too."""

import copy

import families as fam
import saved

from helpers import load_model, load_streamed, prune_loaded, prune_model
from helpers.errors import BadParameter, UnsupportedModel
from helpers.model.models import model_identity

HALF = dict(method="wanda", sparsity=0.5, progress=False)


def test_in_memory_and_from_file_to_file(tmp_path, one_line_error):
    dense = saved.save(tmp_path / "dense")
    tokens = fam.random_tokens()
    whole, _ = load_model(dense)
    assert prune_loaded(whole, method="dense") == (None, whole)
    expected = copy.deepcopy(whole)
    prune_model(expected, tokens, **HALF)
    report, network = prune_loaded(whole, tokens, folder=tmp_path / "not", **HALF)
    assert network is whole and not (tmp_path / "not").exists()
    assert not fam.changed(network, fam.snapshot(expected))
    streamed, _ = load_streamed(dense)
    found, network = prune_loaded(streamed, tokens, folder=tmp_path / "to", **HALF)
    assert not fam.changed(load_model(tmp_path / "to")[0], fam.snapshot(expected))
    assert [row.error for row in found.layers] == [row.error for row in report.layers]
    assert model_identity(network) == model_identity(streamed)
    with one_line_error(BadParameter, "folder"):
        prune_loaded(streamed, tokens, **HALF)
    with one_line_error(UnsupportedModel, "memory"):  # the recipe's own check
        prune_loaded(streamed, tokens.repeat(2, 1), effort="fast", **HALF)
