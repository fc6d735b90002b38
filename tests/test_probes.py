"""Each path to a number has a probe that moves when the path is broken, also on small blocks."""

import contextlib
import json

import families as fam
import pytest
from mutants import MUTANTS, Mutant, around, default

from helpers import load_model
from helpers.beyond import allocation, recipe
from helpers.data import corpora
from helpers.errors import HelpersError
from helpers.paper import admm
from reproduction.proof import probes

# in place of the embedded model, with its tokenizer: more inputs than a block of SparseGPT's, and
# for `down` as many as a mutant asks for
SIZES = dict(
    vocab_size=49_152,
    hidden_size=144,
    intermediate_size=192,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=16,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
)
# of two blocks each lies at its end of OWL's range, with any threshold
THRESHOLD = Mutant(
    "", "allocation/owl of three blocks", default(allocation.owl, outliers=7.0)
)
UNDAMPED = Mutant(
    "", "admm/exact", around(admm, "_exact", lambda f, *args: f(*args[:-1], 0.0))
)
LOST = Mutant(
    "",
    "masks given/more zeros",
    around(admm, "only_within", lambda _whole, score, _keep: score),
)
BROKEN = MUTANTS | {
    "OWL's threshold is 7": THRESHOLD,
    "the optimum without damping": UNDAMPED,
    "masks are forgotten": LOST,
}
# what a small random model may not show: that the repair keeps its start, where thresholds part
REAL = ("OWL's threshold is 7", "the repair keeps its last weights")
KNOWN = {}  # what a probe says of the package as it is


@pytest.fixture(scope="module")
def small():
    """The probes with a small random model, and few texts: ten times faster, by the same paths."""
    model = fam.build(**SIZES), load_model("tiny")[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "embedded", lambda: model)
        patch.setattr(probes, "SEQUENCES", 2)
        patch.setattr(probes, "LENGTH", 64)
        for name in ("c4_documents", "wiki_articles"):
            texts = getattr(corpora, name)()[:32]
            patch.setattr(corpora, name, lambda texts=texts: texts)
        # four steps of the repair instead of 64
        patch.setitem(recipe.EFFORTS, "balanced", recipe.Effort(2, 4))
        yield


def values(name):
    """As text, which has all digits of a float."""
    return {
        key: json.dumps(v)
        for key, v in probes.flat(probes.PROBES[name](), name).items()
    }


def moves(mutant, known, monkeypatch):
    _, name, patch = BROKEN[mutant]
    if name not in known:
        known[name] = values(name)
    patch(monkeypatch)
    with contextlib.suppress(HelpersError):  # such a run has no record
        return values(name) != known[name]
    return True


# before `small` is there
@pytest.mark.parametrize("mutant", REAL)
def test_what_is_broken_moves_its_probe_of_the_real_model(mutant, monkeypatch):
    assert moves(mutant, {}, monkeypatch)


@pytest.mark.parametrize("mutant", [name for name in BROKEN if name not in REAL])
def test_what_is_broken_moves_its_probe(mutant, small, monkeypatch):
    assert moves(mutant, KNOWN, monkeypatch)
