"""Promises of a method: kept by ours, and each found out when it is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import helpers.baselines  # noqa: F401 - registers SparseGPT
from helpers import LayerResult, plan, register, select
from helpers.contract import check_method
from helpers.errors import BadParameter, UnknownMethod
from helpers.methods import METHODS, get_method
from helpers.paths import own_methods_dir

OURS = ("magnitude", "wanda", "sparsegpt", "admm1", "admm-grad", "wanda-refit")


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def largest(weight, sparsity, pattern, keep):
    """A method's mask, done right."""
    return select(weight.abs(), sparsity, pattern) if keep is None else keep


@pytest.mark.parametrize("name", OURS)
def test_ours_keep_every_promise(name: str) -> None:
    assert [promise for promise in check_method(name) if not promise.kept] == []


def own_mask(weight, gram, *, sparsity, pattern, keep=None):
    keep = select(weight.abs(), 0.5 if keep is not None else sparsity, pattern)
    return LayerResult(weight * keep, keep)


def in_place(weight, gram, *, sparsity, pattern, keep=None):
    keep = largest(weight, sparsity, pattern, keep)
    return LayerResult(weight.mul_(keep), keep)


def restless(weight, gram, *, sparsity, pattern, keep=None):
    keep = largest(weight, sparsity, pattern, keep)
    return LayerResult((weight + 1e-3 * torch.rand_like(weight)) * keep, keep)


def shrinking(weight, gram, *, sparsity, pattern, keep=None):
    keep = largest(weight, sparsity, pattern, keep)
    return LayerResult(weight * keep * 0.9, keep)


def unstructured_only(weight, gram, *, sparsity, pattern, keep=None):
    keep = largest(weight, 0.5 if sparsity is None else sparsity, "unstructured", keep)
    return LayerResult(weight * keep, keep)


@pytest.mark.parametrize(
    ("function", "broken", "reason"),
    [
        (own_mask, {"a mask that is given is used"}, "another mask"),
        (in_place, {"weight and gram are left alone", "the same answer twice"}, "weight in place"),
        (restless, {"the same answer twice"}, "seed"),
        (shrinking, {"a layer that needs no pruning stays"}, "sparsity 0"),
        (unstructured_only, {"an exact answer for 2:4", "an exact answer for 4:8"}, "2:4"),
    ],
)
def test_a_broken_promise_is_found(function: Callable, broken: set[str], reason: str) -> None:
    register("bad")(function)
    found = {promise.what: promise.broken for promise in check_method("bad") if not promise.kept}
    assert set(found) <= broken and found
    assert any(reason in text for text in found.values())


def test_a_bug_is_shown_with_its_place() -> None:
    @register("buggy")
    def buggy(weight, gram, *, sparsity, pattern, keep=None):
        return weight.no_such_thing

    with pytest.raises(AttributeError, match="no_such_thing"):
        check_method("buggy")


def test_a_file_adds_its_method() -> None:
    METHODS.pop("wanda-refit", None)
    method = get_method("wanda-refit")
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    gram = torch.diag(torch.arange(1.0, 17.0))
    # with a diagonal gram there is nothing to repair: the answer is Wanda's
    assert torch.allclose(
        method(weight, gram, sparsity=0.5).weight,
        METHODS["wanda"](weight, gram, sparsity=0.5).weight,
        atol=1e-5,
    )


def test_an_unknown_method_is_told_of_those_in_files() -> None:
    with pytest.raises(UnknownMethod, match="wanda-refit"):
        get_method("wanda-refitt")


def test_a_file_without_its_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helpers/own").mkdir(parents=True)
    (tmp_path / "helpers/own/my_idea.py").write_text("x = 1\n")
    monkeypatch.setattr("helpers.paths.root", lambda: tmp_path)
    with pytest.raises(BadParameter, match="my_idea.py registers no method 'my-idea'"):
        get_method("my-idea")


def test_a_changed_file_is_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = next(r for r in plan.read_plan("smoke") if r.notebook == "04_prune_model")
    own = replace(run, parameters={**run.parameters, "method": "wanda-refit"})
    before, others = plan.fingerprint(own), plan.fingerprint(run)
    source = (own_methods_dir() / "wanda_refit.py").read_text().replace('"output"', '"matrix"')
    monkeypatch.setattr(
        "helpers.plan._own_method", lambda r: [source] if r is own else [], raising=True
    )
    assert plan.fingerprint(own) != before
    assert plan.fingerprint(run) == others, "a reader's method leaves other runs as they are"
