"""The memory of a run before it is started, against what was measured and against other counts."""

import families as fam
import pytest

from helpers.errors import BadParameter, UnsupportedModel
from helpers.machine.estimates import Shape, memory_needed
from helpers.machine.presets import notebook_memory
from helpers.models import find_blocks, find_layers, read_weight
from helpers.paths import reference_dir
from helpers.report import read_records

SEVEN = "meta-llama/Llama-2-7b-hf"
PUBLISHED = {
    "embedded": 134_515_008,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "huggyllama/llama-7b": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
}


def parameters(**changes):
    """Those of a run of notebook 04 that count here, by the paper's protocol."""
    values = dict(model=SEVEN, method="admm-grad", dtype="float16")
    values |= dict(sequences=128, length=2048, window=2048, windows=40)
    return values | changes


@pytest.mark.parametrize("model, published", PUBLISHED.items())
def test_parameters_are_the_published_counts(model, published):
    assert Shape(model).parameters == published


def test_a_folder_has_the_shape_of_its_model(tmp_path, one_line_error):
    model = fam.build(intermediate_size=80, num_hidden_layers=3)
    model.save_pretrained(tmp_path)
    shape = Shape(tmp_path)
    block = find_blocks(model)[0]
    layers = [read_weight(layer).shape for layer in find_layers(block).values()]
    assert [(d_out, d_in) for d_in, outs in shape.inputs for d_out in outs] == layers
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    for text in ("[1]", "{}", '{"model_type": "gpt2", "n_embd": 8}'):
        (tmp_path / "config.json").write_text(text)
        with one_line_error(UnsupportedModel, str(tmp_path), "embedded"):
            Shape(tmp_path)
    with one_line_error(BadParameter, "dtype 'int8'"):
        memory_needed(parameters(dtype="int8"))


@pytest.mark.parametrize("plan", ["laptop", "full", "beyond", "second"])
def test_memory_is_that_of_the_committed_records(plan):
    """By what the process took; of a task's texts the longest is known, and not those of a run."""
    for record in read_records(reference_dir(plan) / "records"):
        notebook = record["notebook"]
        given = record["parameters"]
        if "method" in given:
            _, estimated = notebook_memory(notebook, given, gpu=False)
            most = 1.25 if notebook == "05_zero_shot" else 1.1
            assert 0.9 < estimated / record["peak_memory_bytes"] < most, record["name"]


@pytest.mark.parametrize(
    "method, sequences, length, measured",
    [("admm-grad", 4, 512, 3_227_365_376), ("wanda", 2, 256, 2_059_792_384)],
)
def test_memory_from_file_to_file_is_what_was_measured(
    method, sequences, length, measured
):
    """On LLaMA-2-7B's shapes, by what a process grew under a limit of its address space."""
    text = dict(method=method, sequences=sequences, length=length, window=0)
    estimated, _ = memory_needed(parameters(**text, dtype="float32", streamed=True))
    assert 0.85 < measured / estimated < 1.15
