"""The drawings that explain the method, as code: `python -m book.drawings` writes docs/drawings/.

They are plain SVG, the same bytes on every machine, on a white card that also suits a dark page.
One moves, by CSS in the file, unless the reader's system asks for less motion.
A drawing is 400 units wide, a little more than a phone, and its text is at least 13 units high.
`DRAWINGS` lists a function for each.
"""

from __future__ import annotations

import html
import random

from helpers.paths import root

INK, GREY, PALE = "#222222", "#8C8C8C", "#D0D0D0"
DATA = "#7B3FA0"  # measured on text
LIME = "#5F9612"  # weights that are worked on; the colour of no method (helpers/explore/style.py)
KEPT, PRUNED = "#3D4653", "#F4F4F4"  # as masks are in helpers/explore/style.py
# looks of a box: edge, fill
WEIGHTS = (LIME, "#EDF5DF")
MEASURED = (DATA, "#F1E7F7")
OTHER = (GREY, "#F2F2F2")
# all is seen, then covered, then uncovered from the left: the first frame is also the last
UNCOVER = """
@media (prefers-reduced-motion: no-preference) {
  .cover { animation: uncover 9s linear infinite; transform-box: fill-box; transform-origin: right }
}
@keyframes uncover {
  15% { opacity: 0 }
  18%, 25% { opacity: 1; transform: none }
  80%, 100% { opacity: 1; transform: scaleX(0) }
}
"""
SCORES = (  # of a small layer, chosen so that its groups of four are of unequal importance
    (91, 84, 62, 77, 58, 23, 16, 41),
    (15, 64, 12, 29, 87, 95, 68, 52),
    (83, 27, 48, 66, 11, 39, 25, 31),
    (44, 79, 33, 20, 88, 70, 54, 75),
)


def element(name: str, content: str = "", **attributes: object) -> str:
    """Write an SVG element; numbers have one decimal at most, _ in an attribute's name is -,
    and class_ is class.
    """
    shown = ""
    for key, value in attributes.items():
        if isinstance(value, float):
            value = f"{value:.1f}".removesuffix(".0")
        shown += f' {key.rstrip("_").replace("_", "-")}="{value}"'
    return f"<{name}{shown}>{content}</{name}>"


class Drawing:
    """Shapes on a white card, in the order in which they are added.

    about: what the drawing shows, for readers who do not see it.
    """

    def __init__(self, about: str) -> None:
        self.about = " ".join(about.split())
        self.parts: list[str] = []

    def add(self, name: str, **attributes: object) -> None:
        """Add an element without content."""
        self.parts.append(element(name, **attributes))

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 13,
        fill: str = INK,
        anchor: str = "middle",
        **look: object,
    ) -> None:
        """Add words around x, on the line y."""
        content = html.escape(words)
        place = {"x": x, "y": y, "font_size": size, "fill": fill, "text_anchor": anchor}
        self.parts.append(element("text", content, **place, **look))

    def heading(self, x: float, y: float, words: str, size: int = 13) -> None:
        """Add bold words around x, on the line y."""
        self.text(x, y, words, size=size, font_weight="bold")

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        **look: object,
    ) -> None:
        """Add a rectangle: an entry of a matrix, an outline, a bar."""
        self.add("rect", x=x, y=y, width=width, height=height, fill=fill, **look)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *lines: str,
        look: tuple[str, str] = OTHER,
        bold: bool = False,
    ) -> None:
        """Add a box with lines of text in its middle, the first of them a heading if `bold`."""
        edge, fill = look
        self.rect(x, y, width, height, fill, rx=5, stroke=edge, stroke_width=1.5)
        middle = x + width / 2
        at = y + height / 2 + 4.5 - 9 * (len(lines) - 1)
        for words in lines:
            if bold and words is lines[0]:
                self.heading(middle, at, words)
            else:
                self.text(middle, at, words)
            at += 18

    def line(
        self,
        *points: tuple[float, float],
        colour: str = INK,
        arrow: bool = True,
        dash: str = "",
    ) -> None:
        """Add a line through points, with an arrowhead at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        look = {"fill": "none", "stroke": colour, "stroke_width": 1.5}
        if arrow:
            look["marker_end"] = "url(#tip)"
        if dash:
            look["stroke_dasharray"] = dash
        self.add("polyline", points=path, **look)

    def arrows(self, x: float, *ends: tuple[float, float]) -> None:
        """Add vertical arrows at x, from one y to another."""
        for start, end in ends:
            self.line((x, start), (x, end))

    def legend(self, y: float, *entries: tuple[float, str, str]) -> None:
        """Add coloured squares with their meaning: x, colour, words."""
        for x, colour, _ in entries:
            self.rect(x, y - 11, 13, 13, colour, stroke=GREY)
        for x, _, words in entries:
            self.text(x + 19, y, words, anchor="start")

    def svg(self, height: int) -> str:
        """Write the whole file, a card of this height."""
        tip = element(
            "marker",
            element("path", d="M0 0 8 4 0 8z", fill=INK),
            id="tip",
            viewBox="0 0 8 8",
            refX=7,
            refY=4,
            orient="auto",
            markerWidth=7,
            markerHeight=7,
        )
        title = element("title", html.escape(self.about))
        card = element("rect", x=0, y=0, width=400, height=height, fill="#FFFFFF", rx=8)
        whole = element(
            "svg",
            "\n".join(["", title, tip, card, *self.parts, ""]),
            xmlns="http://www.w3.org/2000/svg",
            width=440,
            height=round(1.1 * height),
            viewBox=f"0 0 400 {height}",
            role="img",
            font_family="Helvetica, Arial, sans-serif",
        )
        return whole + "\n"


def block() -> str:
    """Draw a decoder block, its seven layers, and where their four Gram matrices are collected."""
    drawing = Drawing("""
        A decoder block from top to bottom: a norm, the layers q, k and v, attention, the layer o,
        a sum; then a norm, the layers gate and up, their product, the layer down, a sum. A gram
        (Gram matrix) is collected at four places: before q, k and v together, before o, before gate
        and up together, and before down.""")
    drawing.text(155, 22, "the stream enters the block")
    drawing.box(105, 48, 100, 26, "norm")
    drawing.box(62, 104, 58, 30, "q_proj", look=WEIGHTS)
    drawing.box(126, 104, 58, 30, "k_proj", look=WEIGHTS)
    drawing.box(190, 104, 58, 30, "v_proj", look=WEIGHTS)
    drawing.box(105, 216, 100, 30, "o_proj", look=WEIGHTS)
    drawing.box(66, 356, 86, 30, "gate_proj", look=WEIGHTS)
    drawing.box(158, 356, 86, 30, "up_proj", look=WEIGHTS)
    drawing.box(105, 468, 100, 30, "down_proj", look=WEIGHTS)
    drawing.box(85, 160, 140, 26, "attention")
    drawing.box(105, 300, 100, 26, "norm")
    drawing.box(85, 412, 140, 26, "SiLU(gate) × up")
    drawing.arrows(155, (28, 46), (74, 102), (134, 158), (186, 214), (246, 263))
    drawing.arrows(155, (280, 298), (326, 354), (386, 410), (438, 466), (498, 515))
    drawing.arrows(155, (532, 548))
    for y, before in ((272, 38), (524, 288)):
        # a sum, and the stream on its way around to it
        drawing.line((155, before), (30, before), (30, y), (145, y))
        drawing.add("circle", cx=155, cy=y, r=8, fill="none", stroke=INK)
        drawing.text(155, y + 5, "+")
    places = {86: "q, k and v", 200: "o", 340: "gate and up", 452: "down"}
    for y, layers in places.items():
        drawing.line((155, y), (249, y), colour=DATA, arrow=False)
        drawing.add("circle", cx=155, cy=y, r=4, fill=DATA)
        drawing.box(249, y - 14, 144, 28, f"gram of {layers}", look=MEASURED)
    drawing.text(155, 564, "the stream leaves the block")
    drawing.legend(
        592,
        (12, WEIGHTS[1], "pruned"),
        (92, OTHER[1], "left as it is"),
        (210, MEASURED[1], "measured on the text"),
    )
    return drawing.svg(606)


def gram() -> str:
    """Draw the Gram matrix G = XᵀX as a product."""
    drawing = Drawing("""
        The gram (Gram matrix) G is the product of X transposed, inputs by tokens, and X, tokens by
        inputs. Row j of the one and column k of the other give its entry (j, k). It has inputs by
        inputs entries, however many tokens there are.""")
    draw = random.Random(3)
    tokens, inputs = range(9), range(4)
    X = [[draw.random() for _ in inputs] for _ in tokens]
    G = [[sum(row[a] * row[b] for row in X) for b in inputs] for a in inputs]
    most = max(map(max, G))
    drawing.text(166, 114, "·", size=22)
    drawing.text(262, 114, "=", size=20)

    def entry(x: float, y: float, side: float, value: float) -> None:
        shade = round(value, 2)
        drawing.rect(x, y, side, side, DATA, fill_opacity=shade, stroke="#FFFFFF")

    for t in tokens:
        for i in inputs:
            entry(12 + 16 * t, 76 + 16 * i, 16, X[t][i])
            entry(176 + 16 * i, 36 + 16 * t, 16, X[t][i])
    for a in inputs:
        for b in inputs:
            entry(284 + 26 * b, 56 + 26 * a, 26, G[a][b] / most)
    # outlines: row 1 of the first, column 2 of the second, and their entry of the third
    for place in ((12, 92, 144, 16), (208, 36, 16, 144), (336, 82, 26, 26)):
        drawing.rect(*place, "none", stroke=INK, stroke_width=2.5)
    for x, name, shape in (
        (84, "Xᵀ", "inputs × tokens"),
        (208, "X", "tokens × inputs"),
        (336, "G = XᵀX", "inputs × inputs"),
    ):
        drawing.heading(x, 22, name, size=15)
        drawing.text(x, 202, shape)
    drawing.text(200, 230, "An entry sums one input times another over all tokens.")
    drawing.text(200, 248, "However long the text is, G keeps its size.")
    return drawing.svg(262)


def mask() -> str:
    """Draw two masks of one layer, unstructured and 2:4."""
    drawing = Drawing("""
        Two masks of the same layer of 4 outputs and 8 inputs, each keeping 16 of 32 weights.
        Unstructured: the 16 largest scores, wherever they are. 2:4: the 2 largest scores in every
        group of 4 neighbours along the input.""")
    drawing.heading(98, 22, "unstructured, 50 %")
    drawing.heading(298, 22, "2:4")

    def entry(x: float, y: float, score: int, kept: bool) -> None:
        fill, ink = PRUNED, "#6A6A6A"
        if kept:
            fill, ink = KEPT, "#FFFFFF"
        drawing.rect(x, y, 22, 22, fill, stroke=PALE)
        drawing.text(x + 11, y + 15.5, str(score), fill=ink)

    half = sorted(score for row in SCORES for score in row)[16]
    for i, row in enumerate(SCORES):
        y = 34 + 22 * i
        for j, score in enumerate(row):
            group = j // 4
            second = sorted(row[4 * group : 4 * group + 4])[2]
            entry(10 + 22 * j, y, score, score >= half)
            entry(206 + 22 * j + 8 * group, y, score, score >= second)
    drawing.rect(302, 34, 88, 22, "none", stroke=LIME, stroke_width=3)
    drawing.text(98, 142, "the 16 largest of 32 scores")
    drawing.text(298, 142, "the 2 largest of every 4")
    drawing.legend(168, (115, KEPT, "kept"), (195, PRUNED, "set to zero"))
    return drawing.svg(182)


def loop() -> str:
    """Draw the loop of ADMM."""
    drawing = Drawing("""
        The loop of ADMM. It starts with W, the dense weights, and U = 0. Each of 20 iterations has
        three steps: Z is W + U where the mask keeps a weight and zero elsewhere; U adds up W − Z; W
        fits the layer's outputs while staying near Z − U. The result is W + U on the mask.
        ADMM-Grad chooses a new mask at the beginning of each of the first 15 iterations.""")
    drawing.text(232, 22, "start: W = W₀, the dense weights, and U = 0")

    def step(y: float, height: float, *lines: str) -> None:
        drawing.box(70, y, 324, height, *lines, look=WEIGHTS, bold=True)

    step(
        46,
        78,
        "Z ← (W + U) ⊙ keep",
        "copy what the mask keeps, zero elsewhere",
        "(ADMM-Grad first chooses a new mask, 15 times)",
    )
    step(146, 60, "U ← U + W − Z", "add up what the mask took away")
    step(
        228,
        60,
        "W ← (Ĝ + λI + ρI)⁻¹((Ĝ + λI)W₀ + ρ(Z − U))",
        "fit the layer's outputs, near Z − U",
    )
    drawing.arrows(232, (28, 44), (124, 144), (206, 226), (288, 310))
    drawing.line((70, 258), (52, 258), (52, 85), (68, 85))
    drawing.heading(26, 168, "20")
    drawing.text(26, 184, "times")
    drawing.text(232, 326, "result: (W + U) ⊙ keep")
    return drawing.svg(340)


def through(*points: tuple[float, float]) -> str:
    """Write points as an attribute of a polyline or a polygon."""
    return " ".join(f"{x:g},{y:.1f}" for x, y in points)


def admm_steps(*, with_u: bool) -> list[tuple[float, float, float]]:
    """ADMM for one output of two inputs with a correlation of 0.6, of whose weights one is pruned.

    Returns (W kept, W pruned, U pruned) after 0 to 5 iterations, with a damping of 0.1 and ρ = 1. Z
    is W + U where kept, and 0 elsewhere; the U of a weight that is kept is 0.
    """
    a, b = 1.1, 0.6  # G, damped, is (a b; b a); G + ρI has the diagonal c
    c = a + 1
    W0 = (1.0, 0.8)
    target = (a * W0[0] + b * W0[1], b * W0[0] + a * W0[1])  # G W₀
    W, U = W0, 0.0
    steps = []
    for _ in range(6):
        steps.append((*W, U))
        if with_u:
            U += W[1]  # W − Z, as Z is 0
        # (G + ρI)⁻¹ (G W₀ + ρ (Z − U)), where Z − U is (W kept, −U)
        right = (target[0] + W[0], target[1] - U)
        size = c * c - b * b
        W = (c * right[0] - b * right[1]) / size, (c * right[1] - b * right[0]) / size
    return steps


def height(value: float) -> float:
    """The y of a value in `two_inputs`."""
    return round(246 - 138 * value, 1)


def two_inputs() -> str:
    """Draw why ADMM needs U: two panels whose iterations appear one after another."""
    drawing = Drawing("""
        ADMM on two correlated inputs, five iterations, one weight kept and one pruned. With U, the
        pruned weight in W falls to zero, its value in Z, while U adds up the gap, and the kept
        weight reaches the exact optimum. With U held at zero, W keeps a part of the pruned weight,
        so W and Z never agree, and the kept weight stops short of the optimum.""")
    drawing.parts.append(element("style", UNCOVER))
    # least squares with the kept weight alone, and Z's zero
    top, zero = height(1 + 0.8 * 0.6 / 1.1), height(0)
    for left, steps in (30, admm_steps(with_u=True)), (230, admm_steps(with_u=False)):
        kept, pruned, U = (
            [(left + 30 * t, height(value)) for t, value in enumerate(values)]
            for values in zip(*steps, strict=True)
        )
        for points, goal in ((kept, top), (pruned, zero)):
            corners = [*points, (left + 150, goal), (left, goal)]
            gap = " ".join(f"{x:g},{y:g}" for x, y in corners)
            drawing.add("polygon", points=gap, fill="#E4E4E4")
            drawing.line(*points, colour=LIME, arrow=False)
            for x, y in points:
                drawing.add("circle", cx=x, cy=y, r=4, fill=LIME)
        drawing.line(*U, colour=DATA, arrow=False, dash="5 3")
        drawing.rect(left + 5, 36, 151, 224, "#FFFFFF", class_="cover", opacity=0)
        drawing.line((left, top), (left + 158, top), arrow=False, dash="2 3")
        drawing.line((left, zero), (left + 158, zero), arrow=False)
        for t in range(6):
            drawing.text(left + 30 * t, 292, str(t))
    drawing.heading(109, 20, "with U")
    drawing.heading(309, 20, "U held at 0")
    for x, y, words in (
        (188, 40, "exact optimum"),
        (388, 40, "exact optimum"),
        (188, 80, "W and Z, kept"),
        (388, 100, "W and Z, kept"),
        (388, 186, "W, pruned"),
        (188, 270, "W and Z, pruned"),
        (388, 270, "Z and U, pruned"),
    ):
        drawing.text(x, y, words, anchor="end")
    drawing.text(188, 140, "U", fill=DATA)
    drawing.text(200, 310, "iteration")
    drawing.text(200, 332, "grey: the gaps that have to close")
    return drawing.svg(344)


def growth() -> str:
    """Draw the sparsity at each mask step, and the mask at four of them."""
    drawing = Drawing("""
        Sparsity over the 15 mask steps of ADMM-Grad, rising quickly at first and then slowly to
        60 %. Below, the mask of a small layer at steps 1, 4, 9 and 15: weights disappear, and a few
        that were pruned come back because a new mask is chosen in each step.""")
    draw = random.Random(22)
    shown, final = (1, 4, 9, 15), 0.6
    start = [draw.random() for _ in range(64)]
    drift = [draw.random() - 0.5 for _ in start]  # scores change while weights do
    before = [True] * 64
    drawing.text(100, 22, "sparsity at each mask step")
    for t in range(1, 16):
        now = final - final * (1 - t / 15) ** 3
        x = 16 + 24.6 * (t - 1)
        height = 90 * now / final
        drawing.rect(x, 122 - height, 20, height, GREY if t in shown else PALE)
        if t not in shown:
            continue
        left = 16 + 96 * shown.index(t)
        drawing.text(x + 10, 137, str(t))
        drawing.heading(left + 40, 164, f"step {t}")
        drawing.text(left + 40, 270, f"{100 * now:.0f} % zero")
        scores = [a + t / 15 * b for a, b in zip(start, drift, strict=True)]
        threshold = sorted(scores)[round(64 * now)]
        for place, score in enumerate(scores):
            fill = PRUNED
            if score >= threshold:
                fill = KEPT if before[place] else LIME
            i, j = divmod(place, 8)
            drawing.rect(left + 10 * j, 172 + 10 * i, 10, 10, fill, stroke=PALE)
        before = [score >= threshold for score in scores]
    drawing.legend(
        298,
        (60, KEPT, "kept"),
        (135, PRUNED, "set to zero"),
        (250, LIME, "came back"),
    )
    return drawing.svg(312)


def pipeline() -> str:
    """Draw how a model is pruned and measured."""
    drawing = Drawing("""
        The whole pipeline from top to bottom. A dense model and calibration text go in. For each
        block, first to last: replay the block and collect the grams (Gram matrices) of its layers;
        choose each layer's mask and update its weights; replay the pruned block, whose outputs
        enter the next. The pruned model is measured on other text and on tasks, each run leaves a
        record, and tables, figures and claims are made from the records.""")
    drawing.box(30, 12, 160, 30, "dense model", look=WEIGHTS)
    drawing.box(210, 12, 160, 30, "calibration text", look=MEASURED)
    drawing.rect(10, 64, 380, 230, "none", rx=8, stroke=GREY, stroke_dasharray="5 4")
    drawing.heading(215, 84, "for each block, first to last")

    def step(y: float, look: tuple[str, str], *lines: str) -> None:
        drawing.box(66, y, 300, 12 + 18 * len(lines), *lines, look=look)

    step(
        96,
        MEASURED,
        "replay the block on the text:",
        "collect the grams of its layers",
    )
    step(
        162,
        WEIGHTS,
        "for each layer: choose the mask",
        "and update the weights that stay",
    )
    step(
        228,
        OTHER,
        "replay the pruned block: its outputs",
        "are the next block's inputs",
    )
    step(312, WEIGHTS, "pruned model")
    step(360, MEASURED, "perplexity on other text, zero-shot tasks")
    step(408, OTHER, "a record of each run")
    step(456, OTHER, "tables, figures, claims")
    drawing.line((66, 252), (38, 252), (38, 120), (64, 120))
    drawing.arrows(216, (144, 160), (210, 226), (276, 310))
    drawing.arrows(216, (342, 358), (390, 406), (438, 454))
    drawing.arrows(110, (42, 62))
    drawing.arrows(290, (42, 62))
    return drawing.svg(500)


def choices() -> str:
    """Draw how a model answers a multiple-choice question."""
    drawing = Drawing("""
        A question with four choices. A bar for each choice says how likely a model finds it, and
        the longest is the model's answer. The dense model finds the right choice the most likely,
        the pruned model a wrong one. Nothing is generated.""")
    drawing.heading(200, 24, "Bread is baked in …")
    drawing.text(182, 52, "dense model")
    drawing.text(326, 52, "pruned model")

    def bar(x: float, y: float, length: float, longest: float) -> None:
        drawing.rect(x, y, length, 20, DATA if length == longest else PALE)

    y = 62
    for words, dense, pruned in (
        ("an oven", 118, 62),
        ("a lake", 14, 20),
        ("a book", 24, 86),
        ("a forest", 40, 48),
    ):
        drawing.box(10, y, 100, 28, words, look=WEIGHTS if y == 62 else OTHER)
        bar(122, y + 4, dense, longest=118)
        bar(266, y + 4, pruned, longest=86)
        y += 36
    drawing.text(182, 226, "answers “an oven”: right")
    drawing.text(326, 226, "“a book”: wrong")
    drawing.text(200, 254, "the longer its bar, the likelier the model finds a choice")
    drawing.legend(
        280,
        (60, WEIGHTS[1], "right choice"),
        (170, OTHER[1], "wrong choice"),
        (282, DATA, "answer"),
    )
    return drawing.svg(294)


DRAWINGS = (block, gram, mask, loop, two_inputs, growth, pipeline, choices)


if __name__ == "__main__":
    folder = root() / "docs" / "drawings"
    folder.mkdir(exist_ok=True)
    for drawing in DRAWINGS:
        path = folder / f"{drawing.__name__}.svg"
        path.write_text(drawing(), encoding="utf-8")
