"""A user's methods: registered, checked each time they answer, tried out, found in files."""

import math
from contextlib import nullcontext

import pytest
import torch
from layers import layer

from helpers import LayerResult, register, select
from helpers.errors import BadParameter, HelpersError
from helpers.paper.gram import gram_of
from helpers.paper.masks import top_k
from helpers.paper.methods import METHODS, get_method
from reproduction.studies import check_method

pytestmark = pytest.mark.usefixtures("own_methods")


def method_of(answer):
    """A method that gives answer(weight, keep, given), with the mask given or one done right."""

    def method(weight, gram, *, sparsity, pattern, keep=None):
        given = keep is not None
        if not given:
            keep = select(weight.abs(), sparsity, pattern)
        return answer(weight, keep, given)

    return method


def masked(weight, keep, _given=False):
    return LayerResult(weight * keep, keep)


# ---------------------------------------------------------------- what `register` checks


@pytest.mark.parametrize(
    "answer, word",
    [
        (lambda w, g, half: w, "LayerResult"),
        (lambda w, g, half: LayerResult(w, half | True), "zeros"),
        (lambda w, g, half: LayerResult(w, half), "outside"),
        (lambda w, g, half: LayerResult(w[:1], half), "shape"),
        (lambda w, g, half: LayerResult(None, half), "NoneType"),
        (lambda w, g, half: LayerResult((w * half).to_sparse(), half), "sparse"),
        (lambda w, g, half: LayerResult(w * half, None), "NoneType"),
        (lambda w, g, half: LayerResult(w * half * math.nan, half), "NaN"),
        (lambda w, g, half: LayerResult(w * half, half.float()), "mask"),
        # its error would be measured against the weight that it has changed: 0
        (lambda w, g, half: LayerResult(w.mul_(half), half), "changed weight"),
        (lambda w, g, half: masked(w, half & (g.mul_(2).mean() > 0)), "changed gram"),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_a_method_cannot_misreport_itself(answer, word, inference, one_line_error):
    with torch.inference_mode(inference):
        inputs, weight = layer()

        @register("mine")
        def mine(weight, gram, *, sparsity, pattern, keep=None):
            return answer(weight, gram, select(weight.abs(), sparsity, pattern))

        with one_line_error(HelpersError, "mine", word):
            METHODS["mine"](weight, gram_of(inputs), sparsity=0.5)


@pytest.mark.parametrize("zeros", [5, 6, 8, 9, 10])
@pytest.mark.parametrize("budget", ["matrix", "output"])
def test_a_count_in_each_output_may_round_in_each(budget, zeros, one_line_error):
    """With three outputs of five weights at half, each has 2 or 3 zeros: 6 or 9, and not 8."""
    mask = torch.arange(15).view(3, 5) >= zeros

    def chooses(weight, gram, *, sparsity, pattern, keep=None, budget="matrix"):
        return masked(weight, mask)

    register("mine", budget=budget)(method_of(lambda w, *_: masked(w, mask)))
    register("chooses")(chooses)
    weight = torch.randn(3, 5)
    gram = gram_of(torch.randn(20, 5))
    fits = zeros == 8 or (budget == "output" and 6 <= zeros <= 9)
    for name, options in (("mine", {}), ("chooses", {"budget": budget})):
        with nullcontext() if fits else one_line_error(BadParameter, f"{zeros} zeros"):
            METHODS[name](weight, gram, sparsity=0.5, **options)


@pytest.mark.parametrize(
    "name, function, word",
    [
        ("short", lambda weight, gram, *, sparsity, pattern: None, "keep"),
        ("My Idea", method_of(masked), "My Idea"),
        ("wanda", method_of(masked), "own"),
        # the model that is not pruned
        ("dense", method_of(masked), "dense"),
    ],
)
def test_what_is_not_registered(name, function, word, one_line_error):
    before = dict(METHODS)
    with one_line_error(BadParameter, name, word):
        register(name)(function)
    assert before == METHODS


# ---------------------------------------------------------------- conformance


def unstructured(weight, keep, _given):
    """For any pattern."""
    return masked(weight, top_k(weight.abs(), 1 - keep.float().mean().item()))


@pytest.mark.parametrize(
    "answer, failed",
    [
        (lambda w, keep, given: masked(w, top_k(w.abs(), 0.5) if given else keep), 1),
        (lambda w, keep, given: masked(w + 1e-3 * torch.rand_like(w), keep), 1),
        (lambda w, keep, given: masked(0.9 * w, keep), 1),
        (unstructured, 3),  # 2:4, 4:8 and the mask that is given
        (masked, 0),
    ],
    ids=["a mask", "twice", "sparsity 0", "2:4", "ours"],
)
def test_what_does_not_conform_is_named(answer, failed, request):
    register("bad")(method_of(answer))
    broken = [rule for rule, problem in check_method("bad").items() if problem]
    assert len(broken) == failed
    rule = request.node.callspec.id
    assert not failed or any(rule in each for each in broken)


# ---------------------------------------------------------------- files


def test_a_file_adds_its_method():
    METHODS.pop("wanda-refit", None)
    inputs, weight = layer()
    gram = torch.diag(gram_of(inputs).diagonal())
    new = get_method("wanda-refit")(weight, gram, sparsity=0.5).weight
    # with a diagonal gram there is nothing to repair: the answer is Wanda's
    torch.testing.assert_close(new, METHODS["wanda"](weight, gram, sparsity=0.5).weight)


@pytest.mark.parametrize("name", [*METHODS, "wanda-refit"])
def test_ours_conform(name):
    assert set(check_method(name).values()) == {""}


METHOD = """from helpers import LayerResult, register, select

@register("{}")
def idea(weight, gram, *, sparsity, pattern, keep=None):
    keep = select(weight.abs(), sparsity, pattern) if keep is None else keep
    return LayerResult(weight * keep, keep)
"""


@pytest.mark.parametrize(
    "text, word",
    [
        ("x = 1\n", "nothing"),
        (METHOD.format("other"), "other"),
        ("x = 1\nx = (\n", "line 2"),
        (METHOD.format("my-idea") + "select()\n", "line 7"),
        (METHOD.format("wanda"), "line 3"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, monkeypatch, text, word, one_line_error):
    monkeypatch.setattr("helpers.paths.root", lambda: tmp_path)
    folder = tmp_path / "helpers/own"
    folder.mkdir(parents=True)
    (folder / "my_idea.py").write_text(text)
    for _ in range(2):  # the second call must not find what the first has left
        with one_line_error(BadParameter, "my_idea.py", word):
            get_method("my-idea")
        assert "other" not in METHODS
    # the others are found as before, in this folder too
    (folder / "other_idea.py").write_text(METHOD.format("other-idea"))
    assert get_method("other-idea") is METHODS["other-idea"]
    (folder / "wanda.py").touch()  # which would never be used
    for name, said in (("my-ideas", "my-idea"), ("wanda", "rename")):
        with one_line_error(BadParameter, said):
            get_method(name)
