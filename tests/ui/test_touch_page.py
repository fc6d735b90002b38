"""The picture that computes: its numbers against helpers, and the page of the book that has it.

The page is built by Sphinx with the book's configuration and opened as a file, without a network.
"""

import json
import re

import pytest
import torch
from layers import relative_objective
from sphinx.cmd.build import build_main
from test_touch import numbers

from helpers import METHODS, cubic_schedule, exact_least_squares, relative_error, select
from helpers.explore import touch, touch_admm
from helpers.paths import root

SLICE = touch_admm().data
WEIGHT, GRAM = (numbers(SLICE, name) for name in ("weight", "gram"))
CONSTRAINTS = {
    "once": ("unstructured", 0),
    "gradual": ("unstructured", 15),
    "2:4": ("2:4", 0),
    "2:4 gradual": ("2:4", 15),
}
RUN = """async ([source, data, settings]) => {
  const blob = new Blob([source], { type: "text/javascript" });
  const { admm, optimum, relativeError, scaled, unpack } = await import(URL.createObjectURL(blob));
  const layer = scaled(unpack(data));
  return settings.map((each) => {
    const states = admm(layer, each);
    return {
      errors: states.map((state) => state.error),
      keeps: states.map((state) => state.keep),
      best: relativeError(layer, optimum(layer, states.at(-1).keep)),
    };
  });
}"""


def settings(constraint, sparsity=0.6, rho=1.0, with_u=True):
    return {"constraint": constraint, "sparsity": sparsity, "rho": rho, "withU": with_u}


MASKS = [
    settings(constraint, sparsity, rho, with_u)
    for constraint in CONSTRAINTS
    for sparsity in ((0.5,) if "2:4" in constraint else (0.3, 0.6, 0.85))
    for rho in (0.1, 1.0, 10.0)
    for with_u in (True, False)
]
GRIDS = [settings(f"{n} values", rho=rho) for n in (4, 8) for rho in (1.0, 10**0.5)]


@pytest.fixture(scope="module")
def computed(browser):
    """What the module computes for each of the settings."""
    page = browser.new_page()
    source = (touch.HERE / "touch.js").read_text("utf-8")
    found = page.evaluate(RUN, [source, SLICE, MASKS + GRIDS])
    page.close()
    return {
        json.dumps(key): each for key, each in zip(MASKS + GRIDS, found, strict=True)
    }


def loop(project, *, rho, withU, **_):
    """The paper's loop in float64 after each iteration: the error, and what `project` says of Z.

    project(T, t) returns Z, and the same projection for another matrix; T is (outputs, inputs).
    """
    norms = GRAM.double().diagonal().sqrt()
    G = GRAM.double() / torch.outer(norms, norms)
    G = G + 0.1 * G.diagonal().mean() * torch.eye(len(G))
    W0 = WEIGHT.double() * norms
    W, U = W0, torch.zeros_like(W0)
    for t in range(1, 21):
        Z, again = project(W + U, t)
        U = withU * (U + W - Z)
        W = torch.linalg.solve(
            G + rho * torch.eye(len(G)), (W0 @ G + rho * (Z - U)).T
        ).T
        yield relative_objective(WEIGHT, again(W + U) / norms, GRAM)


def masks(constraint, sparsity, **_):
    """A projection onto the masks of `helpers`, and the list that it puts them into."""
    pattern, steps = CONSTRAINTS[constraint]
    keeps = []

    def project(T, t):
        keep = keeps[-1] if keeps else None
        if t <= max(steps, 1):
            now = cubic_schedule(sparsity, t, steps) if steps else sparsity
            keep = select(T.abs(), now, pattern)
        keeps.append(keep)
        return T * keep, lambda other: other * keep

    return project, keeps


@pytest.mark.parametrize(
    "each", MASKS, ids=lambda each: "-".join(map(str, each.values()))
)
def test_masks_and_errors_are_those_of_helpers(each, computed):
    found = computed[json.dumps(each)]
    project, keeps = masks(**each)
    errors = list(loop(project, **each))
    assert found["errors"][1:] == pytest.approx(errors, rel=1e-6)
    assert torch.equal(torch.tensor(found["keeps"][1:]).mT, torch.stack(keeps))
    best = exact_least_squares(WEIGHT, GRAM, keeps[-1], damping=0.1)
    assert found["best"] == pytest.approx(relative_error(WEIGHT, best, GRAM), rel=1e-4)


@pytest.mark.parametrize(
    "each",
    [each for each in MASKS if each["withU"]],
    ids=lambda each: "-".join(map(str, each.values())),
)
def test_errors_are_those_of_the_method(each, computed):
    """In float32 a weight at the edge of a mask may fall on the other side."""
    pattern, steps = CONSTRAINTS[each["constraint"]]
    errors = []
    METHODS["admm-grad"](
        WEIGHT,
        GRAM,
        sparsity=each["sparsity"],
        pattern=pattern,
        mask_steps=steps,
        rho=each["rho"],
        trace=lambda _, weight, keep: errors.append(
            relative_error(WEIGHT, weight, GRAM)
        ),
    )
    found = computed[json.dumps(each)]["errors"]
    assert found[1:] == pytest.approx(errors, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    "each", GRIDS, ids=lambda each: "-".join(map(str, each.values()))
)
def test_the_grid_is_the_nearest_of_evenly_spaced_values(each, computed):
    norms = GRAM.double().diagonal().sqrt()
    low, high = WEIGHT.double().aminmax(dim=1, keepdim=True)
    step = (high - low) / (int(each["constraint"][0]) - 1)

    def nearest(T):
        # of two that are as near the upper: the weights come from 4 bits, and are often halfway
        level = ((T / norms - low) / step + 0.5).floor()
        return (low + step * level.clamp(0, int(each["constraint"][0]) - 1)) * norms

    errors = list(loop(lambda T, t: (nearest(T), nearest), **each))
    found = computed[json.dumps(each)]["errors"]
    assert found[1:] == pytest.approx(errors, rel=1e-6)
    assert found[0] == pytest.approx(
        relative_error(WEIGHT, (nearest(WEIGHT * norms) / norms).float(), GRAM),
        rel=1e-4,
    )


# --- the page of the book ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The computing page alone, built as the book builds it."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "pages").mkdir()
    text = (root() / "book" / "touch_it.md").read_text("utf-8")
    text = re.sub(r"\]\((helpers|notebooks)/[^)]*\)", "](#)", text)
    (folder / "pages" / "index.md").write_text(text, "utf-8")
    options = ["-q", "-c", str(root() / "book")]
    assert build_main([*options, str(folder / "pages"), str(folder / "html")]) == 0
    return folder / "html" / "index.html"


@pytest.fixture(params=[(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")])
def page(request, browser, book):
    """The page on a phone or a laptop, in both colours; the network is off."""
    width, colours = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=colours,
        has_touch=width < 500,
        offline=True,
    )
    page = context.new_page()
    page.goto(book.as_uri())
    page.wait_for_selector(".touch .seen:not(:empty)")
    yield page
    context.close()


def said(page):
    """The percentages in the sentence: the error first."""
    text = page.locator(".touch .seen").inner_text()
    return [float(number) for number in re.findall(r"[\d.]+(?= %)", text)]


def set_to(page, name, value):
    """Set a control as a hand does: input while it moves, change when it is let go of."""
    page.locator(f".touch [name={name}]").evaluate(
        """(control, value) => {
          if (control.type === "checkbox") control.checked = value;
          else control.value = value;
          const event = (kind) => control.dispatchEvent(new Event(kind, { bubbles: true }));
          ["input", "change"].forEach(event);
        }""",
        value,
    )


def painted(page, picture):
    """Colours (inputs, outputs, RGBA) of one of the four pictures."""
    found = (
        page.locator(".touch canvas")
        .nth(picture)
        .evaluate(
            """canvas => {
          const { width, height } = canvas;
          const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
          return [[height, width, 4], [...data]];
        }"""
        )
    )
    return torch.tensor(found[1]).reshape(found[0])


@pytest.mark.parametrize(
    "each", MASKS[::7] + GRIDS, ids=lambda each: "-".join(map(str, each.values()))
)
def test_what_is_said_and_drawn_is_what_was_computed(each, page, computed):
    for name in ("constraint", "sparsity"):
        set_to(page, name, str(each[name]))
    set_to(page, "rho", str(torch.tensor(each["rho"]).log10().item()))
    set_to(page, "withU", each["withU"])
    found = computed[json.dumps(each)]
    for iteration in (0, 7, 20):
        set_to(page, "t", str(iteration))
        error = 100 * found["errors"][iteration]
        # three digits, or two below 1 %
        assert said(page)[0] == pytest.approx(error, rel=0.006 if error > 1 else 0.06)
        keep = torch.tensor(found["keeps"][iteration])
        red, green, blue, seen = painted(page, 3).unbind(-1)
        kept = (seen == 255) & ~(
            (green == 158) & (red == 0)
        )  # the colour of what only "once" keeps
        assert torch.equal(kept, keep)


def test_everything_is_in_sight_and_legible(page):
    size = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert size[0] <= size[1]
    for place in page.locator(
        ".touch :is(label, button, select, canvas, svg, p)"
    ).all():
        box = place.bounding_box()
        assert box["width"] > 20
        assert 0 <= box["x"] <= box["x"] + box["width"] <= size[1]
    colours = page.locator(".touch .seen").evaluate(
        """node => [getComputedStyle(node).color,
                    getComputedStyle(document.body).backgroundColor]"""
    )
    text, ground = (
        sum(map(int, re.findall(r"\d+", each)[:3])) / 765 for each in colours
    )
    assert abs(text - ground) > 0.6, colours


def test_hand_and_keyboard(page):
    sentence = page.locator(".touch .seen")
    assert "Iteration 0:" in sentence.inner_text()
    assert "▶" in sentence.inner_text(), "it says how to begin"
    page.locator(".touch [name=t]").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert "Iteration 1:" in sentence.inner_text()
    box = page.locator(".touch .panels div").first
    caption = page.locator(".touch .charts figcaption").last
    (box.tap if page.viewport_size["width"] < 500 else box.click)(
        position={"x": 1, "y": 1}
    )
    assert caption.inner_text().startswith("input 0 → output 0:")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft"):
        box.press(key)
    assert caption.inner_text().startswith("input 1 → output 1:")
    set_to(page, "t", "18")
    play = page.get_by_role("button", name="play")
    play.click()  # to the end, where it stops
    page.get_by_text("Iteration 20:").wait_for()
    play.click()  # from the beginning
    page.get_by_text("Iteration 3:").wait_for()


def test_reset_takes_all_back(page):
    first = page.locator(".touch").inner_text()
    pictures = [painted(page, k) for k in range(4)]
    changed = {"constraint": "8 values", "sparsity": "0.3", "rho": "-1", "t": "9"}
    for name, value in changed.items():
        set_to(page, name, value)
    set_to(page, "withU", False)
    page.locator(".touch .panels div").first.press("ArrowDown")
    page.get_by_role("button", name="play").click()
    assert page.locator(".touch").inner_text() != first
    page.get_by_role("button", name="Reset").click()
    page.wait_for_timeout(900)  # it does not play on
    assert page.locator(".touch").inner_text() == first
    assert page.locator(".touch [name=withU]").is_checked()
    assert all(torch.equal(painted(page, k), old) for k, old in enumerate(pictures))


def test_a_constraint_begins_with_rho_1_and_keeps_the_one_that_was_set(page):
    rho = page.locator(".touch output").nth(1)
    set_to(page, "rho", "-1")
    assert rho.inner_text() == "0.1"
    for constraint, value in [("gradual", "1"), ("8 values", "1"), ("once", "0.1")]:
        set_to(page, "constraint", constraint)
        assert rho.inner_text() == value


def test_the_legend_names_what_is_drawn(page):
    """The colours of the fourth picture, which is no mask where Z is on a grid, and the lines."""
    left, right = page.locator(".touch .legend").all()
    lines = page.locator(".touch svg").first
    assert "previous" not in lines.inner_html() + right.inner_text()
    colours = "(all) => all.map((each) => getComputedStyle(each).backgroundColor)"
    for constraint, number in (("once", 2), ("gradual", 4), ("8 values", 2)):
        set_to(page, "constraint", constraint)
        set_to(page, "t", "12")
        seen = {tuple(each) for each in painted(page, 3).reshape(-1, 4).tolist()}
        assert len(seen) == number
        named = left.locator("s").evaluate_all(colours)
        named = {tuple(map(int, re.findall(r"\d+", each)[:3])) for each in named}
        # what is transparent is not painted
        assert {each[:3] for each in seen if each[3]} <= named
        assert ("mask" in left.inner_text()) == (constraint != "8 values")
        for line in ("optimum", "previous"):
            assert (line in lines.inner_html()) == (line in right.inner_text())
