"""The predicted memory of `prune_checkpoint`: counted by hand here, measured in the benchmark."""

from __future__ import annotations

import pytest

from helpers.errors import BadParameter, UnknownModel
from helpers.machine.footprint import checkpoint_memory

SEVEN = "meta-llama/Llama-2-7b-hf"


def test_the_parts_of_llama_7b_by_hand() -> None:
    found = checkpoint_memory(SEVEN, sequences=128, length=2048)
    d, ff = 4096, 11_008
    assert found.block == 4 * (4 * d * d + 3 * d * ff + 2 * d)
    # q, k, v read one input, the output projection another, gate and up a third, down the last
    assert found.grams == 4 * (3 * d * d + ff * ff)
    assert found.stream == 4 * 128 * 2048 * d
    # down_proj is factored: its gram, the scaled one, the factor, the inverse and LAPACK's copy
    solve = 4 * 5 * ff * ff
    assert found.phases["solve"] == found.stream + found.block + int(solve)
    assert found.peak == found.phases["solve"]


def test_half_precision_and_disk_save_what_they_should() -> None:
    whole = checkpoint_memory(SEVEN, sequences=128, length=2048)
    half = checkpoint_memory(SEVEN, sequences=128, length=2048, dtype="float16")
    disk = checkpoint_memory(SEVEN, sequences=128, length=2048, activations="disk")
    assert (half.block, half.stream) == (whole.block // 2, whole.stream // 2)
    assert half.grams == whole.grams  # always float32
    assert disk.stream == 0 and disk.peak < whole.peak - whole.stream / 2


def test_more_calibration_takes_no_more_than_its_activations() -> None:
    few, many = (checkpoint_memory(SEVEN, sequences=n, length=2048) for n in (8, 16))
    assert many.peak - few.peak == 8 * 2048 * 4096 * 4


def test_a_70b_model_fits_a_workstation_block_by_block() -> None:
    found = checkpoint_memory(
        "meta-llama/Llama-2-70b-hf", sequences=128, length=2048, dtype="float16", activations="disk"
    )
    assert found.peak < 20e9  # its weights alone take 138 GB


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"method": "wnada"}, BadParameter),
        ({"dtype": "int8"}, BadParameter),
        ({"sequences": 0}, BadParameter),
        ({"batch": 0}, BadParameter),
        ({"source": "nowhere"}, UnknownModel),
    ],
)
def test_bad_requests_are_refused(change: dict, error: type[Exception], one_line_error) -> None:
    asked = {"source": SEVEN, "sequences": 8, "length": 512, **change}
    with one_line_error(error):
        checkpoint_memory(asked.pop("source"), **asked)
