"""A reader's methods: registered, checked each time they answer, tried out, found in files."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from layers import layer

from helpers import LayerResult, register, select
from helpers.errors import BadParameter, HelpersError
from helpers.gram import gram_of
from helpers.masks import top_k
from helpers.methods import METHODS, get_method
from helpers.promises import check_method

UPDATES = "at sparsity 0 the weights stay"
ANSWERS = [f"an exact answer for {target}" for target in ("unstructured 50 %", "2:4", "4:8")]
OURS = ("magnitude", "wanda", "sparsegpt", "admm1", "admm-grad", "wanda-refit")

pytestmark = pytest.mark.usefixtures("registry")


def method_of(answer: Callable) -> Callable:
    """A method that gives answer(weight, keep, given), with the mask given or one done right."""

    def method(weight, gram, *, sparsity, pattern, keep=None):
        given = keep is not None
        return answer(weight, keep if given else select(weight.abs(), sparsity, pattern), given)

    return method


def masked(weight: torch.Tensor, keep: torch.Tensor, _given: bool = False) -> LayerResult:
    return LayerResult(weight * keep, keep)


# ---------------------------------------------------------------- what the registry checks


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (lambda w, half: w, "LayerResult"),
        (lambda w, half: LayerResult(w, half | True), "sparsity"),
        (lambda w, half: LayerResult(w * top_k(w.abs(), 0.1), top_k(w.abs(), 0.1)), "sparsity"),
        (lambda w, half: LayerResult(w, half), "outside its mask"),
        (lambda w, half: LayerResult(w[:1], half), "shape"),
        (lambda w, half: LayerResult(w * half * math.nan, half), "NaN"),
        (lambda w, half: LayerResult(w * half, half.float()), "mask"),
    ],
)
def test_a_method_cannot_misreport_itself(answer, word: str, one_line_error) -> None:
    inputs, weight = layer()
    register("mine")(method_of(lambda weight, keep, given: answer(weight, keep)))
    with one_line_error(HelpersError, word):
        METHODS["mine"](weight, gram_of(inputs), sparsity=0.5)


@pytest.mark.parametrize("damaged", ["weight", "gram", "weight and gram"])
@pytest.mark.parametrize("inference", [False, True])
def test_a_method_that_works_in_place_is_refused(
    damaged: str, inference: bool, one_line_error
) -> None:
    """Its error would be measured against the weight that it has changed: 0."""

    @register("mine")
    def in_place(weight, gram, *, sparsity, pattern, keep=None):
        keep = top_k(weight.abs(), sparsity)
        if "gram" in damaged:
            gram.diagonal().add_(1.0)
        return LayerResult(weight.mul_(keep) if "weight" in damaged else weight * keep, keep)

    with torch.inference_mode(inference):
        inputs, weight = layer()
        with one_line_error(BadParameter, "mine", f"changed {damaged} in place", "clone"):
            METHODS["mine"](weight, gram_of(inputs), sparsity=0.5)


def test_a_function_that_is_no_method_is_not_registered(one_line_error) -> None:
    with one_line_error(BadParameter, "keep"):
        register("short")(lambda weight, gram, *, sparsity, pattern: None)
    with one_line_error(BadParameter, "gram"):
        register("short")(lambda weight, **options: None)
    for thing in (3, None, "wanda"):
        with one_line_error(BadParameter, "'short'", type(thing).__name__, "function"):
            register("short")(thing)
    with one_line_error(BadParameter, "weight", "gram"):
        register("short")(max)  # Python does not say what it takes
    assert "short" not in METHODS


# ---------------------------------------------------------------- promises, tried out


@pytest.mark.parametrize("name", OURS)
def test_ours_keep_every_promise(name: str) -> None:
    assert [promise for promise in check_method(name) if not promise.kept] == []


@pytest.mark.parametrize(
    ("answer", "broken", "reason"),
    [
        (lambda w, keep, given: masked(w, top_k(w.abs(), 0.5) if given else keep),
         {"a mask that is given is used"}, "other than the one given"),
        (lambda w, keep, given: masked(w + 1e-3 * torch.rand_like(w), keep),
         {"the same answer twice"}, "seed"),
        (lambda w, keep, given: masked(0.9 * w, keep), {UPDATES}, "sparsity 0"),
        # unstructured whatever the pattern
        (lambda w, keep, given: masked(w, top_k(w.abs(), 1 - keep.float().mean().item())),
         {*ANSWERS[1:], "a mask that is given is used"}, "2:4"),
    ],
    ids=["own mask", "restless", "shrinking", "unstructured"],
)  # fmt: skip
def test_a_broken_promise_is_found(answer: Callable, broken: set[str], reason: str) -> None:
    register("bad")(method_of(answer))
    found = {promise.what: promise.broken for promise in check_method("bad") if not promise.kept}
    assert set(found) == broken
    assert any(reason in text for text in found.values())


def test_a_bug_is_shown_with_its_place() -> None:
    @register("buggy")
    def buggy(weight, gram, *, sparsity, pattern, keep=None):
        return weight.no_such_thing

    with pytest.raises(AttributeError, match="no_such_thing"):
        check_method("buggy")


# ---------------------------------------------------------------- files


def test_a_file_adds_its_method() -> None:
    METHODS.pop("wanda-refit", None)
    with pytest.raises(BadParameter, match="wanda-refit"):
        get_method("wanda-refitt")
    method = get_method("wanda-refit")
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    gram = torch.diag(torch.arange(1.0, 17.0))
    # with a diagonal gram there is nothing to repair: the answer is Wanda's
    assert torch.allclose(
        method(weight, gram, sparsity=0.5).weight,
        METHODS["wanda"](weight, gram, sparsity=0.5).weight,
        atol=1e-5,
    )


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the reader's files, empty."""
    monkeypatch.setattr("helpers.paths.root", lambda: tmp_path)
    folder = tmp_path / "helpers/own"
    folder.mkdir(parents=True)
    return folder


METHOD = """from helpers import LayerResult, register, select

@register("{}")
def idea(weight, gram, *, sparsity, pattern, keep=None):
    keep = select(weight.abs(), sparsity, pattern) if keep is None else keep
    return LayerResult(weight * keep, keep)
"""


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("my_idea.py", "x = 1\n", ["my_idea.py registers no method 'my-idea'", "@register"]),
        (
            "my-idea.py",
            METHOD.format("my-idea"),
            ["helpers/own/my-idea.py", "rename", "my_idea.py"],
        ),
        ("my_idea.py", METHOD.format("other"), ["registers other", "'my-idea'", "to other.py"]),
        ("my_idea.py", "x = 1\nx = (\n", ["my_idea.py, line 2: SyntaxError", "correct it"]),
        ("my_idea.py", "\n\nselect()\n", ["line 3: NameError", "'select'"]),
        ("my_idea.py", METHOD.format("wanda"), ["line 3: BadParameter", "package's own"]),
        ("my_idea.py", METHOD.format("My Idea"), ["'My Idea' is not allowed", "my-method"]),
        ("my_idea.py", METHOD.format("my-idea") + "select()\n", ["line 7: TypeError"]),
    ],
)
def test_a_file_that_cannot_be_used(
    own: Path, file: str, text: str, words: list[str], one_line_error
) -> None:
    (own / file).write_text(text)
    for _ in range(2):  # the second call must not find what the first has left
        with one_line_error(BadParameter, *words):
            get_method("my-idea")


def test_a_file_named_like_one_of_ours_is_not_passed_over(own: Path, one_line_error) -> None:
    get_method("wanda")
    (own / "wanda.py").write_text(METHOD.format("wanda"))
    with one_line_error(BadParameter, "helpers/own/wanda.py", "rename"):
        get_method("wanda")


def test_a_cell_replaces_its_own_method_and_none_of_ours(one_line_error) -> None:
    first, second = method_of(masked), method_of(masked)
    register("mine")(first)
    register("mine")(second)
    assert METHODS["mine"].__wrapped__ is second
    ours = METHODS["wanda"]
    for taken in ("wanda", "dense"):  # dense is the model that is not pruned
        with one_line_error(BadParameter, f"'{taken}'", "another name"):
            register(taken)(first)
    assert METHODS["wanda"] is ours
