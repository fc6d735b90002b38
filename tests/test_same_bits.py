"""`make same` says what differs, links what does not, and refuses what it cannot judge."""

import contextlib
import importlib.metadata
import json

import pytest

from helpers.errors import RunError
from helpers.paths import root
from reproduction import fingerprint
from reproduction.fingerprint import equal_hashes, tree_hashes
from reproduction.proof import same_bits as same
from reproduction.proof.probes import flat

HEAD = "b" * 40
RECORDS = "a" * 40
TODAY = {"core": "core-b", "large": "large-b", "04": "04-a"}
EARLIER = {"core": "core-a", "large": "large-a", "04": "04-a"}
RECORD = {
    "notebook": "04",
    "created": "2026",
    "git": {"commit": RECORDS},
    "fingerprint": {"core": "core-a", "notebook": "04-a", "files": "-"},
    "versions": {name: importlib.metadata.version(name) for name in same.COMPUTING},
}


def test_the_records_are_of_todays_code():
    """Or of code that is proven to compute the same; of a plan that is known as earlier README
    says so.
    """
    today = tree_hashes(root())
    records = same.committed_records()
    earlier = list(root().glob("results/reference/*/earlier.txt"))
    assert len(records) > 20 or earlier
    for record in records:
        for name, code in same.hashes_of(record).items():
            current = code in equal_hashes(today[name])
            assert current, f"{name} is not that of the records: run make same"


def test_what_is_compared_and_how_it_is_said():
    earlier = {"a": 0.1, "b": "x", "c": 0.0, "d": 1, "e": None, "f": None}
    assert same.compare(earlier, earlier | {"g": 1}) == ([], ["g"])
    today = {"a": 0.1 + 2**-55, "b": "y", "c": -0.0, "d": 1.0, "e": 0, "g": 1}
    # where nothing was, values may come; a value does not go for others
    assert same.compare({"s": None}, {"s/0": 1}) == ([], ["s/0"])
    assert len(same.compare({"s": 2}, {"s/0": 1})[0]) == 1
    assert len(same.compare({"s": None}, {"t": 1})[0]) == 1
    unequal, new = same.compare(earlier, today)
    assert ([item.name for item in unequal], new) == (list("abcdef"), ["g"])
    first = "a: 0.1 earlier, 0.10000000000000003 today, relative difference +2.2e-16"
    assert str(unequal[0]) == first
    assert str(unequal[1]) == "b: 'x' earlier, 'y' today"


def test_each_checkout_runs_its_own_probes(tmp_path):
    """Where it has them: up to 0.10.0 beside the tests."""
    with pytest.raises(RunError, match="no probes"):
        same.layout(tmp_path)
    for probes, package in reversed(same.LAYOUTS.items()):
        path = tmp_path / probes
        path.parent.mkdir(parents=True)
        path.touch()
        assert same.layout(tmp_path) == (probes, package)
    assert same.layout(root())


def test_of_a_record_all_but_time_and_place_is_compared():
    record = dict.fromkeys(same.UNEQUAL, 1) | {
        "notebook": "04",
        "metrics": {
            "perplexity": {"value": 2.5, "unit": "1"},
            "took": {"value": 9, "unit": "s"},
        },
        "layers": [{"error": 0.5, "seconds": 3.0}],
        "series": {"batch": 2},
    }
    assert flat(same.without_time(record), "r") == {
        "r/notebook": "04",
        "r/metrics/perplexity/value": 2.5,
        "r/metrics/perplexity/unit": "1",
        "r/layers/0/error": 0.5,
        "r/series/batch": 2,
    }


@pytest.fixture
def prove(monkeypatch, tmp_path, capsys):
    """`make same` with given values of either checkout: its code and what it says."""
    tree = tmp_path / "earlier"
    state = {
        "earlier": {"p": 0.5},
        "today": {"p": 0.5},
        "hashes": TODAY,
        "records": [RECORD],
        "status": "",
        "with probes": (RECORDS,),
        "own": EARLIER,
    }

    def git(*arguments):
        if arguments[0] == "status":
            return state["status"]
        name = arguments[-1].removesuffix("^{commit}").partition(":")[0]
        known = {"HEAD": HEAD, HEAD: HEAD, RECORDS: RECORDS}
        files = state["with probes"] if arguments[0] == "cat-file" else known
        if name not in known or name not in files:
            raise same.subprocess.CalledProcessError(1, "git")
        return known[name]

    def hashes(project):
        return EARLIER if project == tree else state["hashes"]

    def values_of(project, _):
        side = "earlier" if project == tree else "today"
        return state[side] | {"code": state["own"] if side == "earlier" else TODAY}

    path = tmp_path / "same.json"
    for owner in (same, fingerprint):
        monkeypatch.setattr(owner, "proofs_path", lambda: path)
    monkeypatch.setattr(same, "root", lambda: tmp_path)
    monkeypatch.setattr(same, "git", git)
    monkeypatch.setattr(same, "tree_hashes", hashes)
    monkeypatch.setattr(same, "committed_records", lambda: state["records"])
    monkeypatch.setattr(same, "worktree", lambda _: contextlib.nullcontext(tree))
    monkeypatch.setattr(same, "values_of", values_of)

    def run(*arguments, **changes):
        state.update(changes)
        monkeypatch.setattr(same.sys, "argv", ["same_bits.py", *arguments])
        code = same.main()
        return code, "".join(capsys.readouterr())

    run.path = path
    return run


def test_equal_code_is_linked(prove):
    code, said = prove()
    assert code == 0
    assert "1 values are equal bit for bit" in said
    assert "core, large" in said
    (proof,) = json.loads(prove.path.read_text())
    assert (proof["from"], proof["to"], proof["values"]) == (RECORDS, HEAD, 1)
    assert proof["equal"] == {
        "core": ["core-a", "core-b"],
        "large": ["large-a", "large-b"],
    }
    assert equal_hashes("core-b") == {"core-a", "core-b"}
    assert proof["processor"]
    assert proof["date"]
    # proven again it stands there once, and new values do no harm
    code, said = prove(today={"p": 0.5, "q": 1})
    assert code == 0
    assert "1 values are new" in said
    assert len(json.loads(prove.path.read_text())) == 1
    # what the earlier checkout calls its own code counts, and records of other code are named
    code, said = prove("--from", RECORDS, own={"core": "core-x"})
    _, proof = json.loads(prove.path.read_text())
    assert code == 0
    assert proof["equal"]["core"][0] == "core-x"
    prove.path.unlink()
    code, said = prove("--from", RECORDS)
    assert code == 0
    assert "still of other code: records of core-a;" in said
    # nothing is left where today's code is that of the records
    code, said = prove(hashes=EARLIER)
    assert code == 0
    assert said.startswith("nothing to prove")


@pytest.mark.parametrize("today, said", [({"p": 0.75}, "+0.5"), ({}, "None today")])
def test_other_code_is_not(today, said, prove):
    code, text = prove(today=today)
    assert code == 1
    assert said in text
    assert "NOT the same" in text
    assert not prove.path.exists()


def test_other_scoring_may_find_other_likelihoods_and_is_not_linked(prove):
    values = [{"zero-shot/sciq/likelihoods/0": value} for value in (0.5, 0.75)]
    changes = dict(zip(("earlier", "today"), values, strict=True))
    changes["own"] = {"core": "core-a", "scoring": "a"}
    assert prove(**changes, hashes=TODAY | {"scoring": "a"})[0] == 1
    assert prove(**changes, hashes=TODAY | {"scoring": "b"})[0] == 0
    (proof,) = json.loads(prove.path.read_text())
    assert (proof["values"], [*proof["equal"]]) == (0, ["core"])


OTHER_TORCH = RECORD | {"versions": RECORD["versions"] | {"torch": "1.0"}}


@pytest.mark.parametrize(
    "arguments, changes, code, words",
    [
        (["--from", "v9"], {}, 1, "FROM = 'v9' is no commit"),
        (
            [],
            {"status": " M helpers/paper/admm.py"},
            1,
            "admm.py differs from the commit",
        ),
        ([], {"records": [OTHER_TORCH]}, 3, "the records were made with 1.0"),
    ],
)
def test_what_cannot_be_judged_is_one_sentence(arguments, changes, code, words, prove):
    answered, said = prove(*arguments, **changes)
    assert answered == code
    assert words in said
    assert said.count("\n") == 1
    assert not prove.path.exists()


def test_the_earlier_commit_is_one_with_probes(prove):
    """The records' own; else the newest that is proven equal to it and is not today's code."""
    prove()
    later = TODAY | {"core": "core-c"}

    def commit(of, *with_probes):
        prove(**{"with probes": with_probes})
        return same.earlier_commit([RECORD], of)

    assert commit(later, RECORDS, HEAD) == HEAD
    assert commit(later, RECORDS) == RECORDS
    # where today's code is that of the proof, it is proven again from the records
    assert commit(TODAY, RECORDS, HEAD) == RECORDS
    with pytest.raises(RunError, match="FROM"):
        commit(later)
