"""ADMM in the reader's hands: a picture that computes in the browser, from a slice of a real layer.

touch.js runs the loop of `helpers.paper.admm.admm` and draws it, touch.css says how it looks, and
touch.json has the slice: some weights of one attention head's inputs, and their Gram matrix.
In JupyterLab and on Colab anywidget shows them; the book puts all three into its page, which then
needs no kernel, no server and no network. `python -m helpers.explore.touch` writes touch.json.
"""

import base64
import json
import sys
from pathlib import Path

import anywidget
import traitlets
from IPython.display import HTML
from torch import Tensor

from helpers import calibration_tokens, layer_problems, load_model
from helpers.paths import replace_file

HERE = Path(__file__).parent
SLICE = HERE / "touch.json"
# A head's 64 values are neighbouring inputs of o_proj. Those of this one are well correlated, so
# that there is much to refit
BLOCK, LAYER, HEAD, HEAD_SIZE, OUTPUTS = 12, "self_attn.o_proj", 1, 64, 24
SEQUENCES, LENGTH = 2, 512
# what a page without a kernel holds; the book fills it, others show the sentence
PLACE = (
    '<div class="touch-admm"><p>Here ADMM runs in your browser: in JupyterLab, on Colab, and in '
    "the book.</p></div>"
)


class TouchAdmm(anywidget.AnyWidget):
    """The picture as a widget. data: the slice, see `slice_of`. still: its place in the book."""

    _esm = HERE / "touch.js"
    _css = HERE / "touch.css"
    data = traitlets.Dict().tag(sync=True)
    still = HTML(PLACE)


def touch_admm() -> TouchAdmm:
    """ADMM on a slice of a layer: drag ρ, sparsity and iteration, and see W, Z, U and the mask."""
    return TouchAdmm(data=json.loads(SLICE.read_text("utf-8")))


def page_script() -> str:
    """A script that fills each `PLACE` of a page; inlined, it also runs in a page from a file."""
    styles = json.dumps((HERE / "touch.css").read_text("utf-8"))
    return f"""{(HERE / "touch.js").read_text("utf-8")}
document.head.append(Object.assign(document.createElement("style"), {{ textContent: {styles} }}));
const model = new Map([["data", {SLICE.read_text("utf-8")}]]);
for (const el of document.querySelectorAll(".touch-admm")) render({{ model, el }});
"""


def slice_of(weight: Tensor, gram: Tensor, title: str) -> dict:
    """A weight (outputs, inputs) and its gram as JSON can hold them, in float32.

    title: what they are, a sentence.
    """

    def packed(numbers: Tensor) -> str:
        return base64.b64encode(numbers.numpy().astype("<f4").tobytes()).decode()

    return {
        "title": title,
        "inputs": len(gram),
        "weight": packed(weight),
        "gram": packed(gram),
    }


def make_slice() -> dict:
    """The slice of the embedded model, with its gram on C4: some ten seconds."""
    model, tokenizer = load_model("embedded", device="cpu", dtype="float32")
    tokens = calibration_tokens(
        "embedded", tokenizer, sequences=SEQUENCES, length=LENGTH, seed=0
    )
    problems = layer_problems(model, tokens, BLOCK, [LAYER], progress=False)
    weight, gram = problems[LAYER]
    head = slice(HEAD * HEAD_SIZE, (HEAD + 1) * HEAD_SIZE)
    title = (
        f"A slice of SmolLM2-135M-Instruct (Apache-2.0): in block {BLOCK}, {LAYER}, the "
        f"{HEAD_SIZE} inputs from attention head {HEAD} and the first {OUTPUTS} of "
        f"{len(weight)} outputs; XᵀX over {tokens.numel()} tokens of C4 (ODC-BY)."
    )
    return slice_of(weight[:OUTPUTS, head], gram[head, head], title)


if __name__ == "__main__":
    replace_file(SLICE, json.dumps(make_slice(), indent=1, ensure_ascii=False) + "\n")
    sys.stdout.write(f"{SLICE}\n")
