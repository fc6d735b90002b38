"""The studies on small random layers, against sums written out in float64."""

import math

import pytest
import torch
from layers import layer as random_layer
from layers import masked, objective, relative_objective

from helpers.paper.admm import exact_least_squares
from helpers.paper.gram import gram_of, relative_error
from helpers.paper.methods import METHODS
from reproduction import claim_draws
from reproduction.studies import mask_study, update_study
from reproduction.studies import updates as studies


@pytest.fixture(scope="module")
def layer():
    """A weight, and grams of two texts."""
    inputs, weight = random_layer(24, 32, tokens=240)
    return weight, *map(gram_of, inputs.split(120))


@pytest.fixture(scope="module")
def study(layer):
    return update_study(*layer, sparsities=(0.5, 0.7), iterations=60)


def pick(study, **wanted):
    return [row for row in study["update"] if wanted.items() <= row.items()]


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

    def exact(damping):
        return exact_least_squares(weight.double(), gram, keep, damping=damping)

    floor = objective(weight, exact(0.1), gram, 0.1)
    for solver, damping, new in (
        ("none", None, weight * keep),
        ("exact", 0.0, exact(0.0)),
        ("sparsegpt", 0.01, METHODS["sparsegpt"](weight, gram, keep=keep).weight),
        ("exact", 0.1, exact(0.1)),
    ):
        (row,) = pick(study, sparsity=0.7, solver=solver, damping=damping)
        check(row, new, layer)
        above = (objective(weight, new, gram, 0.1) / floor - 1).item()
        assert row["excess"] == pytest.approx(above, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_nothing_is_below_the_optimum_and_admm_arrives(study, sparsity):
    assert all(row["excess"] >= 0 for row in study["update"])

    def excess(**wanted):
        (row,) = pick(study, sparsity=sparsity, **wanted)
        return row["excess"]

    usual = dict(solver="admm", rho=1.0, precondition=True, iterations=50)
    end = excess(damping=0.1, **usual)
    assert end < 1e-3 * excess(solver="none")
    # another damping has another optimum: it must not look converged
    assert excess(damping=0.01, **usual) > 10 * end


def test_a_diverged_curve_is_cut_and_its_rows_are_missing(layer, monkeypatch):
    rivals = [dict(solver="sgd", learning_rate=rate) for rate in (1.0, 1e4)]
    monkeypatch.setattr(studies, "RIVALS", rivals)
    study = update_study(*layer, sparsities=(0.5,), iterations=100)
    kind = dict(solver="sgd", precondition=False)
    fine, cut = (c for c in study["curves"] if kind.items() <= c.items())
    assert fine["iterations"][-1] == 100
    assert 0 < cut["iterations"][-1] < 100
    assert all(map(math.isfinite, cut["error"] + cut["excess"]))
    assert not pick(study, learning_rate=1e4, iterations=100, **kind)


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
    rows = mask_study(*layer, sparsities=(0.5, 0.7), patterns=("unstructured", "2:4"))
    # four numbers of mask steps, and where there is no pattern a schedule and a budget
    assert [row["pattern"] for row in rows] == 12 * ["unstructured"] + 4 * ["2:4"]
    assert {row["sparsity"] for row in rows[6:12]} == {0.7}
    for row in rows:
        options = {k: v for k, v in row.items() if k not in ("error", "heldout")}
        check(row, METHODS["admm-grad"](*layer[:2], **options).weight, layer)
        usual = dict(mask_steps=15, schedule="paper", budget="matrix")
        assert sum(row[name] != usual[name] for name in usual) <= 1
    assert len({row["error"] for row in rows}) == len(rows), "every rule has an effect"


def test_claims_read_what_the_study_measures():
    """The claims have these numbers too, since torch is slow to import."""
    assert claim_draws.RHOS == studies.RHOS
    assert claim_draws.LIGHT_DAMPING == studies.LIGHT_DAMPING
