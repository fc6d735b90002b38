"""Each path to a number has a probe that moves when the path is broken, on real blocks."""

import contextlib
import json

import probes
import pytest
from mutants import MUTANTS

from helpers.beyond import recipe
from helpers.errors import HelpersError

# enough to see that something is broken
probes.SEQUENCES = 2
probes.LENGTH = 64
KNOWN = {}  # what a probe says of the package as it is


def values(name):
    """As text, which has all digits of a float."""
    return {
        key: json.dumps(v)
        for key, v in probes.flat(probes.PROBES[name](), name).items()
    }


@pytest.mark.parametrize("mutant", MUTANTS)
def test_what_is_broken_moves_its_probe(mutant, monkeypatch):
    # four steps of the repair instead of 64
    monkeypatch.setitem(recipe.EFFORTS, "balanced", recipe.Effort(2, 4))
    name = MUTANTS[mutant].probe
    if name not in KNOWN:
        KNOWN[name] = values(name)
    MUTANTS[mutant].patch(monkeypatch)
    with contextlib.suppress(HelpersError):  # such a run has no record
        assert values(name) != KNOWN[name]
