"""Each path to a number has a probe that moves when the path is broken, on real blocks."""

import contextlib
import json

import pytest
from mutants import MUTANTS, Mutant, around, default

from helpers.beyond import allocation, recipe
from helpers.errors import HelpersError
from helpers.paper import admm
from reproduction.proof import probes

# enough to see that something is broken
probes.SEQUENCES = 2
probes.LENGTH = 64
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
KNOWN = {}  # what a probe says of the package as it is


def values(name):
    """As text, which has all digits of a float."""
    return {
        key: json.dumps(v)
        for key, v in probes.flat(probes.PROBES[name](), name).items()
    }


@pytest.mark.parametrize("mutant", BROKEN)
def test_what_is_broken_moves_its_probe(mutant, monkeypatch):
    # four steps of the repair instead of 64
    monkeypatch.setitem(recipe.EFFORTS, "balanced", recipe.Effort(2, 4))
    _, name, patch = BROKEN[mutant]
    if name not in KNOWN:
        KNOWN[name] = values(name)
    patch(monkeypatch)
    with contextlib.suppress(HelpersError):  # such a run has no record
        assert values(name) != KNOWN[name]
