"""The drawings that explain the method, as code: `python -m book.drawings` writes docs/drawings/.

They are plain SVG, the same bytes on every machine, on a white card that also suits a dark page.
A drawing is 400 units wide, a little more than a phone, and its text is at least 13 units high.
`DRAWINGS` has a function for each, which returns the SVG; its docstring says what one sees.
"""

from __future__ import annotations

import html
import random
from collections.abc import Callable

from helpers.paths import root

INK, GREY, DATA = "#222222", "#8C8C8C", "#7B3FA0"  # DATA: measured on text
LIME = "#5F9612"  # weights that are worked on; the colour of no method (helpers/report/style.py)
KEPT, PRUNED = "#3D4653", "#F4F4F4"  # as masks are in helpers/report/style.py
WEIGHTS, MEASURED, OTHER = (
    (LIME, "#EDF5DF"),
    (DATA, "#F1E7F7"),
    (GREY, "#F2F2F2"),
)  # edge, fill
SCORES = (  # of a small layer, chosen so that its groups of four are of unequal importance
    (91, 84, 62, 77, 58, 23, 16, 41),
    (15, 64, 12, 29, 87, 95, 68, 52),
    (83, 27, 48, 66, 11, 39, 25, 31),
    (44, 79, 33, 20, 88, 70, 54, 75),
)


def tag(name: str, content: str = "", **attributes: object) -> str:
    """An element; numbers with one decimal at most, _ in an attribute's name for -."""
    shown = ""
    for key, value in attributes.items():
        value = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
        shown += f' {key.replace("_", "-")}="{value}"'
    return f"<{name}{shown}>{content}</{name}>"


def card(height: int, about: str | None, *parts: str) -> str:
    """A whole SVG file: its parts on a white card; `about` says in words what they show."""
    tip = tag("path", d="M0 0 8 4 0 8z", fill=INK)
    size = dict(markerWidth=7, markerHeight=7)
    tip = tag(
        "marker",
        tip,
        id="tip",
        viewBox="0 0 8 8",
        refX=7,
        refY=4,
        orient="auto",
        **size,
    )
    title = tag("title", html.escape(" ".join((about or "").split())))
    inner = "\n".join(
        ["", title, tip, rect(0, 0, 400, height, "#FFFFFF", rx=8), *parts, ""]
    )
    size = dict(width=440, height=round(1.1 * height), viewBox=f"0 0 400 {height}")
    look = dict(role="img", font_family="Helvetica, Arial, sans-serif")
    return tag("svg", inner, xmlns="http://www.w3.org/2000/svg", **size, **look) + "\n"


def text(x: float, y: float, words: str, *, bold: bool = False, **look: object) -> str:
    """Words around x, on the line y."""
    look = {"font_size": 13, "fill": INK, "text_anchor": "middle", **look}
    look |= {"font_weight": "bold"} if bold else {}
    return tag("text", html.escape(words), x=x, y=y, **look)


def rect(
    x: float, y: float, width: float, height: float, fill: str, **look: object
) -> str:
    """A rectangle: an entry of a matrix, an outline, a bar."""
    return tag("rect", x=x, y=y, width=width, height=height, fill=fill, **look)


def box(
    x: float, y: float, width: float, height: float, *lines: str,
    look: tuple[str, str] = OTHER, bold: bool = False,
) -> str:  # fmt: skip
    """A box with lines of text in its middle; `bold`, whether the first of them is a heading."""
    edge, fill = look
    parts = [rect(x, y, width, height, fill, rx=5, stroke=edge, stroke_width=1.5)]
    first = y + height / 2 + 4.5 - 9 * (len(lines) - 1)
    for number, words in enumerate(lines):
        parts += [
            text(x + width / 2, first + 18 * number, words, bold=bold and not number)
        ]
    return "\n".join(parts)


def line(*points: tuple[float, float], colour: str = INK, tip: bool = True) -> str:
    """A line through points, with an arrow's tip at its end."""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    look = {"marker_end": "url(#tip)"} if tip else {}
    return tag(
        "polyline", points=path, fill="none", stroke=colour, stroke_width=1.5, **look
    )


def legend(y: float, *entries: tuple[float, str, str]) -> str:
    """Coloured squares with their meaning, each at an x."""
    squares = [rect(x, y - 11, 13, 13, colour, stroke=GREY) for x, colour, _ in entries]
    return "\n".join(
        squares + [text(x + 19, y, w, text_anchor="start") for x, _, w in entries]
    )


def block() -> str:
    """A decoder block from top to bottom: a norm, the layers q, k and v, attention, the layer o,
    a sum; then a norm, the layers gate and up, their product, the layer down, a sum. A gram is
    collected at four places: before q, k and v together, before o, before gate and up together,
    and before down."""
    parts = [
        text(155, 22, "the stream enters the block"),
        box(105, 48, 100, 26, "norm"),
    ]
    for x, y, width, layer in ((62, 104, 58, "q_proj"), (126, 104, 58, "k_proj"),
                               (190, 104, 58, "v_proj"), (105, 216, 100, "o_proj"),
                               (66, 356, 86, "gate_proj"), (158, 356, 86, "up_proj"),
                               (105, 468, 100, "down_proj")):  # fmt: skip
        parts += [box(x, y, width, 30, layer, look=WEIGHTS)]
    parts += [box(85, 160, 140, 26, "attention"), box(105, 300, 100, 26, "norm")]
    parts += [box(85, 412, 140, 26, "SiLU(gate) × up")]
    arrows = [
        (28, 46),
        (74, 102),
        (134, 158),
        (186, 214),
        (246, 263),
        (280, 298),
        (326, 354),
    ]
    arrows += [(386, 410), (438, 466), (498, 515), (532, 548)]
    parts += [line((155, start), (155, end)) for start, end in arrows]
    for y, before in (
        (272, 38),
        (524, 288),
    ):  # a sum, and the stream on its way around to it
        parts += [line((155, before), (30, before), (30, y), (145, y))]
        parts += [
            tag("circle", cx=155, cy=y, r=8, fill="none", stroke=INK),
            text(155, y + 5, "+"),
        ]
    for y, layers in (
        (86, "q, k and v"),
        (200, "o"),
        (340, "gate and up"),
        (452, "down"),
    ):
        parts += [line((155, y), (249, y), colour=DATA, tip=False)]
        parts += [tag("circle", cx=155, cy=y, r=4, fill=DATA)]
        parts += [box(249, y - 14, 144, 28, f"gram of {layers}", look=MEASURED)]
    parts += [text(155, 564, "the stream leaves the block")]
    parts += [legend(592, (12, WEIGHTS[1], "pruned"), (92, OTHER[1], "left as it is"),
                     (210, MEASURED[1], "measured on the text"))]  # fmt: skip
    return card(606, block.__doc__, *parts)


def gram() -> str:
    """The gram G is the product of X transposed, inputs by tokens, and X, tokens by inputs. Row j
    of the one and column k of the other give its entry (j, k). It has inputs by inputs entries,
    however many tokens there are."""
    draw, tokens, inputs, j, k = random.Random(3), 9, 4, 1, 2
    X = [[draw.random() for _ in range(inputs)] for _ in range(tokens)]
    G = [
        [sum(row[a] * row[b] for row in X) for b in range(inputs)]
        for a in range(inputs)
    ]
    most = max(map(max, G))
    parts = [text(166, 114, "·", font_size=22), text(262, 114, "=", font_size=20)]
    for t, row in enumerate(X):
        for i, value in enumerate(row):
            look = dict(fill=DATA, fill_opacity=round(value, 2), stroke="#FFFFFF")
            parts += [rect(12 + 16 * t, 76 + 16 * i, 16, 16, **look)]
            parts += [rect(176 + 16 * i, 36 + 16 * t, 16, 16, **look)]
    for a, row in enumerate(G):
        for b, value in enumerate(row):
            look = dict(
                fill=DATA, fill_opacity=round(value / most, 2), stroke="#FFFFFF"
            )
            parts += [rect(284 + 26 * b, 56 + 26 * a, 26, 26, **look)]
    for place in ((12, 76 + 16 * j, 144, 16), (176 + 16 * k, 36, 16, 144),
                  (284 + 26 * k, 56 + 26 * j, 26, 26)):  # fmt: skip
        parts += [rect(*place, "none", stroke=INK, stroke_width=2.5)]
    for x, name, shape in ((84, "Xᵀ", "inputs × tokens"), (208, "X", "tokens × inputs"),
                           (336, "G = XᵀX", "inputs × inputs")):  # fmt: skip
        parts += [text(x, 22, name, font_size=15, bold=True), text(x, 202, shape)]
    parts += [text(200, 230, "An entry sums one input times another over all tokens.")]
    parts += [text(200, 248, "However long the text is, G keeps its size.")]
    return card(262, gram.__doc__, *parts)


def mask() -> str:
    """Two masks of the same layer of 4 outputs and 8 inputs, each keeping 16 of 32 weights.
    Unstructured: the 16 largest scores, wherever they are. 2:4: the 2 largest scores in every
    group of 4 neighbours along the input."""
    half = sorted(score for row in SCORES for score in row)[16]
    parts = [
        text(98, 22, "unstructured, 50 %", bold=True),
        text(298, 22, "2:4", bold=True),
    ]
    for i, row in enumerate(SCORES):
        for j, score in enumerate(row):
            second = sorted(row[j // 4 * 4 : j // 4 * 4 + 4])[2]
            for x, kept in ((10 + 22 * j, score >= half),
                            (206 + 22 * j + 8 * (j // 4), score >= second)):  # fmt: skip
                fill, ink = (KEPT, "#FFFFFF") if kept else (PRUNED, "#6A6A6A")
                parts += [rect(x, 34 + 22 * i, 22, 22, fill, stroke="#D0D0D0")]
                parts += [text(x + 11, 49.5 + 22 * i, str(score), fill=ink)]
    parts += [rect(302, 34, 88, 22, "none", stroke=LIME, stroke_width=3)]
    parts += [text(98, 142, "the 16 largest of 32 scores")]
    parts += [text(298, 142, "the 2 largest of every 4")]
    parts += [legend(168, (115, KEPT, "kept"), (195, PRUNED, "set to zero"))]
    return card(182, mask.__doc__, *parts)


def loop() -> str:
    """The loop of ADMM. It starts with W, the dense weights, and U = 0. Each of 20 iterations has
    three steps: Z is W + U where the mask keeps a weight and zero elsewhere; U adds up W − Z; W
    fits the layer's outputs while staying near Z − U. The result is W + U on the mask. ADMM-Grad
    chooses the mask anew at the beginning of the first 15 iterations."""
    parts = [text(232, 22, "start: W = W₀, the dense weights, and U = 0")]
    for y, height, *lines in (
        (46, 78, "Z ← (W + U) ⊙ keep", "copy what the mask keeps, zero elsewhere",
         "(ADMM-Grad first chooses it anew, 15 times)"),
        (146, 60, "U ← U + W − Z", "add up what the mask took away"),
        (228, 60, "W ← (Ĝ + λI + ρI)⁻¹((Ĝ + λI)W₀ + ρ(Z − U))",
         "fit the layer's outputs, near Z − U"),
    ):  # fmt: skip
        parts += [box(70, y, 324, height, *lines, look=WEIGHTS, bold=True)]
    parts += [
        line((232, a), (232, b))
        for a, b in ((28, 44), (124, 144), (206, 226), (288, 310))
    ]
    parts += [
        line((70, 258), (52, 258), (52, 85), (68, 85)),
        text(26, 168, "20", bold=True),
    ]
    parts += [text(26, 184, "times"), text(232, 326, "result: (W + U) ⊙ keep")]
    return card(340, loop.__doc__, *parts)


def growth() -> str:
    """Sparsity over the 15 mask steps of ADMM-Grad, rising quickly at first and then slowly to
    60 %. Below, the mask of a small layer at steps 1, 4, 9 and 15: weights disappear, and a few
    that were dropped come back because the mask is chosen anew."""
    draw, shown, final = random.Random(22), (1, 4, 9, 15), 0.6
    start = [draw.random() for _ in range(64)]
    drift = [draw.random() - 0.5 for _ in start]  # scores change while weights do
    parts, before = [text(100, 22, "sparsity at each mask step")], [True] * 64
    for t in range(1, 16):
        now = final - final * (1 - t / 15) ** 3
        x, height = 16 + 24.6 * (t - 1), 90 * now / final
        parts += [rect(x, 122 - height, 20, height, GREY if t in shown else "#D0D0D0")]
        if t not in shown:
            continue
        scores = [a + t / 15 * b for a, b in zip(start, drift, strict=True)]
        keep = [score >= sorted(scores)[round(64 * now)] for score in scores]
        left = 16 + 96 * shown.index(t)
        parts += [
            text(x + 10, 137, str(t)),
            text(left + 40, 164, f"step {t}", bold=True),
        ]
        parts += [text(left + 40, 270, f"{100 * now:.0f} % zero")]
        for place, (kept, was) in enumerate(zip(keep, before, strict=True)):
            fill = PRUNED if not kept else KEPT if was else LIME
            i, j = divmod(place, 8)
            parts += [rect(left + 10 * j, 172 + 10 * i, 10, 10, fill, stroke="#D0D0D0")]
        before = keep
    meanings = (
        (60, KEPT, "kept"),
        (135, PRUNED, "set to zero"),
        (250, LIME, "came back"),
    )
    return card(312, growth.__doc__, *parts, legend(298, *meanings))


def pipeline() -> str:
    """The whole pipeline from top to bottom. A dense model and calibration text go in. For each
    block, first to last: replay the block and collect the grams of its layers; choose each
    layer's mask and update its weights; replay the pruned block, whose outputs enter the next.
    The pruned model is measured on other text and on tasks, each run leaves a record, and tables,
    figures and claims are made from the records."""
    parts = [box(30, 12, 160, 30, "dense model", look=WEIGHTS)]
    parts += [box(210, 12, 160, 30, "calibration text", look=MEASURED)]
    parts += [rect(10, 64, 380, 230, "none", rx=8, stroke=GREY, stroke_dasharray="5 4")]
    parts += [text(215, 84, "for each block, first to last", bold=True)]
    for y, height, look, *lines in (
        (
            96,
            48,
            MEASURED,
            "replay the block on the text:",
            "collect the grams of its layers",
        ),
        (
            162,
            48,
            WEIGHTS,
            "for each layer: choose the mask",
            "and update the weights that stay",
        ),
        (
            228,
            48,
            OTHER,
            "replay the pruned block: its outputs",
            "are the next block's inputs",
        ),
        (312, 30, WEIGHTS, "pruned model"),
        (360, 30, MEASURED, "perplexity on other text, zero-shot tasks"),
        (408, 30, OTHER, "a record of each run"),
        (456, 30, OTHER, "tables, figures, claims"),
    ):
        parts += [box(66, y, 300, height, *lines, look=look)]
    parts += [line((66, 252), (38, 252), (38, 120), (64, 120))]
    arrows = [(144, 160), (210, 226), (276, 310), (342, 358), (390, 406), (438, 454)]
    parts += [line((216, start), (216, end)) for start, end in arrows]
    parts += [line((x, 42), (x, 62)) for x in (110, 290)]
    return card(500, pipeline.__doc__, *parts)


def choices() -> str:
    """A question with four choices. A bar for each choice says how likely a model finds it, and the
    longest is the model's answer. The dense model finds the right choice the most likely, the
    pruned model a wrong one. Nothing is generated."""
    parts = [text(200, 24, "Bread is baked in …", bold=True)]
    parts += [text(182, 52, "dense model"), text(326, 52, "pruned model")]
    for row, (words, *bars) in enumerate(
        (
            ("an oven", 118, 62),
            ("a lake", 14, 20),
            ("a book", 24, 86),
            ("a forest", 40, 48),
        )
    ):
        y = 62 + 36 * row
        parts += [box(10, y, 100, 28, words, look=OTHER if row else WEIGHTS)]
        for x, bar, longest in zip((122, 266), bars, (118, 86), strict=True):
            parts += [rect(x, y + 4, bar, 20, DATA if bar == longest else "#D0D0D0")]
    parts += [
        text(182, 226, "answers “an oven”: right"),
        text(326, 226, "“a book”: wrong"),
    ]
    parts += [
        text(200, 254, "the longer its bar, the likelier the model finds a choice")
    ]
    parts += [legend(280, (60, WEIGHTS[1], "right choice"), (170, OTHER[1], "wrong choice"),
                     (282, DATA, "answer"))]  # fmt: skip
    return card(294, choices.__doc__, *parts)


DRAWINGS: dict[str, Callable[[], str]] = {
    drawing.__name__: drawing
    for drawing in (block, gram, mask, loop, growth, pipeline, choices)
}


if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        path = root() / "docs" / "drawings" / f"{name}.svg"
        path.parent.mkdir(exist_ok=True)
        path.write_text(draw(), encoding="utf-8")
