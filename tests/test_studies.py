"""The studies on small random layers, against sums written out in float64."""

import math

import pytest
import torch
from layers import layer as random_layer
from layers import masked, objective, relative_objective

from helpers.admm import exact_least_squares
from helpers.gram import gram_of, relative_error
from helpers.methods import METHODS
from helpers.studies import mask_study, update_study
from helpers.studies import updates as studies


@pytest.fixture(scope="module")
def layer():
    """A weight, and grams of two texts."""
    inputs, weight = random_layer(24, 32, tokens=240)
    return weight, *map(gram_of, inputs.split(120))


@pytest.fixture(scope="module")
def study(layer):
    return update_study(*layer, sparsities=(0.5, 0.7), iterations=60)


def pick(study, **wanted):
    return [
        row for row in study["update"] if all(row[k] == v for k, v in wanted.items())
    ]


def check(row, new, layer):
    """A row holds the errors of these weights on both texts."""
    weight, gram, heldout = layer
    for name, matrix in (("error", gram), ("heldout", heldout)):
        expected = relative_objective(weight, new, matrix)
        assert row[name] == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------- update_study


def test_numbers_are_those_of_the_definitions(layer, study):
    weight, gram, _ = layer
    score = weight.abs() * gram.diagonal().sqrt()
    keep = torch.from_numpy(masked(score.numpy(), 0.7, "unstructured"))
    best = exact_least_squares(weight.double(), gram.double(), keep, damping=0.1)
    floor = objective(weight, best, gram, 0.1)
    answers = {
        ("none", None): weight * keep,
        ("exact", 0.0): exact_least_squares(weight.double(), gram, keep, damping=0.0),
        ("sparsegpt", 0.01): METHODS["sparsegpt"](weight, gram, keep=keep).weight,
    }
    for (solver, damping), new in answers.items():
        (row,) = pick(study, sparsity=0.7, solver=solver, damping=damping)
        check(row, new, layer)
        above = (objective(weight, new, gram, 0.1) / floor - 1).item()
        assert row["excess"] == pytest.approx(above, rel=1e-3)
    (row,) = pick(study, sparsity=0.7, solver="exact", damping=0.1)
    assert row["excess"] < 1e-6
    assert row["heldout"] != row["error"]


def test_nothing_is_below_the_optimum_and_admm_arrives(study):
    assert all(row["excess"] >= 0 for row in study["update"])
    for sparsity in (0.5, 0.7):
        (none,) = pick(study, sparsity=sparsity, solver="none")
        usual = dict(solver="admm", rho=1.0, precondition=True, iterations=50)
        (end,) = pick(study, sparsity=sparsity, damping=0.1, **usual)
        assert end["excess"] < 1e-3 * none["excess"]
        # another damping has another optimum: it must not look converged
        (other,) = pick(study, sparsity=sparsity, damping=0.01, **usual)
        assert other["excess"] > 10 * end["excess"]


def test_a_diverged_curve_is_cut_and_its_rows_are_missing(layer, monkeypatch):
    rivals = [dict(solver="sgd", learning_rate=rate) for rate in (1.0, 1e4)]
    monkeypatch.setattr(studies, "RIVALS", rivals)
    study = update_study(*layer, sparsities=(0.5,), iterations=100)
    curves = [c for c in study["curves"] if c["solver"] == "sgd"]
    fine, cut = (c for c in curves if not c["precondition"])
    assert fine["iterations"][-1] == 100
    assert 0 < cut["iterations"][-1] < 100
    assert all(map(math.isfinite, cut["error"] + cut["excess"]))
    last = dict(solver="sgd", precondition=False, learning_rate=1e4, iterations=100)
    assert not pick(study, **last)


def test_measuring_does_not_count(layer, monkeypatch):
    clock = [0.0]  # which goes on while a weight is measured, and at no other time

    def slow(*arguments):
        clock[0] += 1.0
        return relative_error(*arguments)

    monkeypatch.setattr(studies, "relative_error", slow)
    monkeypatch.setattr(studies.time, "perf_counter", lambda: clock[0])
    study = update_study(*layer, sparsities=(0.5,), iterations=20)
    assert clock[0] > 20
    assert {row["seconds"] for row in study["update"]} == {0.0}


# ---------------------------------------------------------------- mask_study


def test_mask_study_changes_one_rule_at_a_time(layer):
    weight, gram, _ = layer
    rows = mask_study(*layer, sparsities=(0.5, 0.7), patterns=("unstructured", "2:4"))
    names = ("pattern", "sparsity", "mask_steps", "schedule", "budget")
    steps = [(n, "paper", "matrix") for n in (0, 5, 10, 15)]
    free = [*steps, (15, "released", "matrix"), (15, "paper", "output")]
    assert [tuple(row[name] for name in names) for row in rows] == [
        *(("unstructured", 0.5, *rule) for rule in free),
        *(("unstructured", 0.7, *rule) for rule in free),
        *(("2:4", 0.5, *rule) for rule in steps),
    ]
    for row in rows:
        options = {k: v for k, v in row.items() if k not in ("error", "heldout")}
        check(row, METHODS["admm-grad"](weight, gram, **options).weight, layer)
    assert len({row["error"] for row in rows}) == len(rows), "every rule has an effect"
