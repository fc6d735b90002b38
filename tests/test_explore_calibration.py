"""The explorer of the calibration text: norms, text that can be read, and the controls."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import calibration_tokens, load_model
from helpers.capture import advance, capture, embed, stream_norms
from helpers.errors import HelpersError, Stopped
from helpers.explore import calibration_explorer
from helpers.explore.calibration import pieces_of, table_html, text_html
from helpers.models import find_blocks


@pytest.fixture(scope="module")
def tiny() -> tuple[nn.Module, Any, Tensor]:
    model, tokenizer = load_model("tiny", device="cpu")
    return model, tokenizer, calibration_tokens("embedded", tokenizer, sequences=3, length=24)


# --- norms ---------------------------------------------------------------------------------


def test_norms_are_those_of_a_replay(tiny: tuple[nn.Module, Any, Tensor]) -> None:
    model, _, tokens = tiny
    norms = stream_norms(model, tokens)
    stream, calls = embed(model, tokens, 3), capture(model, tokens).calls
    blocks = find_blocks(model)
    assert norms.shape == (3, len(blocks) + 1, 24)
    for index, block in enumerate(blocks):
        torch.testing.assert_close(norms[:, index], stream.norm(dim=-1))
        advance(block, stream, calls[index], 3, "block")
    torch.testing.assert_close(norms[:, -1], stream.norm(dim=-1))


def test_a_pass_can_be_ended_and_leaves_no_hook(tiny: tuple[nn.Module, Any, Tensor]) -> None:
    model, _, tokens = tiny

    def progress(done: int, total: int, _name: str) -> None:
        assert total == 9
        if done == 4:
            raise Stopped("stopped")

    with pytest.raises(Stopped):
        stream_norms(model, tokens, progress)
    for module in model.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks


def test_another_thread_may_run_the_model_meanwhile(tiny: tuple[nn.Module, Any, Tensor]) -> None:
    model, _, tokens = tiny
    expected, answers = stream_norms(model, tokens), []

    def progress(*_step: Any) -> None:
        thread = threading.Thread(target=lambda: answers.append(model(tokens[:, :5]).logits))
        thread.start()
        thread.join()

    assert torch.equal(stream_norms(model, tokens, progress), expected) and len(answers) == 9


# --- text ----------------------------------------------------------------------------------


def test_pieces_make_up_the_text(tiny: tuple[nn.Module, Any, Tensor]) -> None:
    _, tokenizer, _ = tiny
    text = "The  cat\n\n sat <on> the mat, & its hat."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of(tokenizer, ids)
    assert len(pieces) == len(ids) and "".join(pieces) == text


class Sentencepiece:
    """A tokenizer that drops the space at the beginning of what it decodes."""

    words = {0: "<s>", 1: " the", 2: " cat", 3: "s", 4: "\n"}

    def batch_decode(self, many: list[list[int]], **_options: Any) -> list[str]:
        return ["".join(self.words[number] for number in ids).removeprefix(" ") for ids in many]


def test_a_space_that_decoding_drops_is_kept() -> None:
    assert pieces_of(Sentencepiece(), [1, 2, 3, 4, 1]) == ["the", " cat", "s", "\n", " the"]


def test_text_is_escaped_and_stands_out_by_more_than_colour() -> None:
    pieces = ["<script>", " a", "&", "\n\n", " ", "b", ""]
    markup = text_html(pieces, [1.0, 100.0, 3.0, 1.0, 1.0, 1.0, 1.0], [1])
    assert "<script>" not in markup
    plain = html.unescape(re.sub(r"<sup>1</sup>|<[^>]*>", "", markup))
    assert plain.endswith("<script> a&↵↵\n␣b∅")
    depth = [float(d) for d in re.findall(r"background: rgba\(230,120,0,([\d.]+)\)", markup)]
    assert depth[0] == 0 and depth[1] == 0.55 and 0 < depth[2] < 0.55
    spans = re.findall(r"<span.*?</span>", markup)
    for part in ("font-weight: bold", "underline", "<sup>1</sup>", "position 1: 100 × median"):
        assert [part in span for span in spans] == [False, True, *5 * [False]], part


def test_the_table_has_numbers_and_the_text_around() -> None:
    table = table_html(["a", "\n", "<b>", " c"], [1.0, 2.0, 123456.0, 4.0], [1, 2, 3000.0, 4], [2])
    for part in ("<td", ">2<", "&lt;b&gt;", "123,456", "3,000", "a↵[&lt;b&gt;] c"):
        assert part in table, part


# --- the explorer --------------------------------------------------------------------------


def test_controls_change_text_table_and_picture(
    tiny: tuple[nn.Module, Any, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = stream_norms(tiny[0], tiny[2])
    explorer = calibration_explorer(*tiny, window=0, block=1, top=3)
    for name, value in {"window": 1, "block": 2}.items():
        explorer.wait(30)
        before = explorer.picture.value, explorer.below.value
        explorer.controls[name].value = value
        explorer.wait(30)
        assert explorer.picture.value != before[0] and explorer.below.value != before[1]
        # a window is run once
        monkeypatch.setattr("helpers.explore.calibration.stream_norms", lambda *_: pytest.fail(""))
    order = norms[1, 2].argsort(descending=True)[:3].tolist()
    cells = re.findall(r"<tr>\s*<td>(\d+)</td>\s*<td>(\d+)</td>", explorer.below.value)
    assert cells == [(str(rank), str(at)) for rank, at in enumerate(order, 1)]
    here, largest = (ax.get_lines()[0].get_ydata() for ax in explorer.figure.axes)
    assert list(here) == pytest.approx(norms[1, 2].tolist())
    assert list(largest) == pytest.approx(norms[1].max(-1).values.tolist())
    assert "leaving the last block" in explorer.view.caption


def test_one_window_is_enough(tiny: tuple[nn.Module, Any, Tensor]) -> None:
    model, tokenizer, tokens = tiny
    explorer = calibration_explorer(model, tokenizer, tokens[:1])
    assert explorer.controls["window"].max == 0
    alt = re.search(r'<img alt="([^"]+)"', explorer.still._repr_html_())[1]
    assert "the token with the largest stream is" in alt


def test_what_is_not_there_is_refused(
    tiny: tuple[nn.Module, Any, Tensor], one_line_error: Callable
) -> None:
    model, tokenizer, tokens = tiny
    with one_line_error(HelpersError, "window 3", "0 to 2"):
        calibration_explorer(*tiny, window=3)
    with one_line_error(HelpersError, "block", "0 to 2"):
        calibration_explorer(*tiny, block=3)
    with one_line_error(HelpersError, "tokenizer or tokens"):
        calibration_explorer(model, tokenizer)
    with one_line_error(HelpersError, "int64"):
        calibration_explorer(model, tokenizer, tokens.float())
