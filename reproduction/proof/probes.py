"""Small computations on real data, one for each path by which a number reaches a record.

    python reproduction/proof/probes.py [--only admm]    # one JSON: name → value

`make same` runs them in two checkouts and compares all values bit for bit: a float is written in
full, and a tensor as a hash of its bytes. The model is the first two blocks of the embedded one,
and the text is real. Whoever adds a path to a number adds a probe of it here. A probe that is
changed gets another name: an earlier commit runs its own, and values are compared by their names.
"""

import argparse
import contextlib
import copy
import functools
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import datasets
import lm_eval
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

import helpers
from helpers import device
from helpers.beyond import allocation, recipe, training
from helpers.beyond.distil import DistilReport
from helpers.data import corpora, tasks
from helpers.model import (
    block_grams,
    blocks,
    hidden_states,
    perplexity,
    token_trees,
    zero_shot,
)
from helpers.model.block_loop import LayerReport, PruneReport
from helpers.model.models import find_blocks
from helpers.paper import gradient_methods, masks
from helpers.paper.admm import admm, damped_system, fixed_mask, gradual_mask
from helpers.paper.fast import selection
from helpers.paper.gram import climb_damping, damp, normalise
from reproduction.studies import (
    draw_windows,
    mask_rules,
    method_checks,
    pipelines,
    updates,
)

BLOCKS = 2
SEQUENCES, LENGTH = 8, 128  # of calibration text
DRAW = dict(sequences=8, length=128, seed=0)
WORDS = dict(vocab_size=97, bos_token_id=1, eos_token_id=2)
# attention that sees less than the text in its first block
GEMMA = transformers.Gemma3TextConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    sliding_window=8,
    layer_types=["sliding_attention", "full_attention"],
)
# weights that are stored transposed
GPT2 = transformers.GPT2Config(**WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=128)
GPT2_WITH_MASKS = transformers.GPT2Config(
    **WORDS,
    n_embd=32,
    n_layer=2,
    n_head=4,
    n_positions=128,
    attn_implementation="eager",
)
# positions that are computed, and windows of attention, which trees of texts cannot have
BLOOM = transformers.BloomConfig(**WORDS, hidden_size=32, n_layer=2, n_head=4)
GPT_NEO = transformers.GPTNeoConfig(
    **WORDS,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    window_size=8,
    attention_types=[[["global", "local"], 1]],
    max_position_embeddings=128,
)
PROBES: dict[str, Callable[[], Any]] = {}


def probe(name: str, **arguments: Any) -> Callable[[Callable], Callable]:
    """Add a function to `PROBES`, to be called with these arguments."""

    def add(function: Callable) -> Callable:
        PROBES[name] = functools.partial(function, **arguments)
        return function

    return add


# --- what they are made of ------------------------------------------------------------------


@functools.cache
def embedded() -> tuple[nn.Module, Any]:
    """The first blocks of the embedded model, and its tokenizer."""
    model, tokenizer = helpers.load_model("embedded", device="cpu", dtype="float32")
    return cut(model, BLOCKS), tokenizer


def cut(model: nn.Module, blocks: int) -> nn.Module:
    """The model with its first blocks alone."""
    del find_blocks(model)[blocks:]
    model.config.num_hidden_layers = blocks
    return model


def fresh(blocks: int = BLOCKS) -> nn.Module:
    """A dense copy, to be pruned."""
    return cut(copy.deepcopy(embedded()[0]), blocks)


@functools.cache
def tokens(sequences: int = 0, length: int = 0) -> Tensor:
    """Calibration text, by default SEQUENCES of LENGTH."""
    draw = dict(sequences=sequences or SEQUENCES, length=length or LENGTH, seed=0)
    return helpers.calibration_tokens("embedded", embedded()[1], **draw)


@functools.cache
def pages() -> Tensor:
    """The beginning of the text for perplexity."""
    return helpers.evaluation_tokens("embedded", embedded()[1])[:4096]


@functools.cache
def problem() -> tuple[Tensor, Tensor, Tensor]:
    """A layer's weight, its gram, and the gram of other text."""
    name = "self_attn.k_proj"
    found = [
        helpers.layer_problems(embedded()[0], text, 1, [name])[name]
        for text in tokens().chunk(2)
    ]
    return *found[0], found[1][1]


def tiny(config: Any) -> tuple[nn.Module, Tensor]:
    """A random model, and text for it."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(10)  # so that the logits depend on the text
    return model, torch.randint(3, 97, (4, 24))


class WithStart:
    """A tokenizer that begins each text with a start token, which the embedded one does not."""

    eos_token_id, start = 2, 1

    def __call__(
        self, text: str | list, add_special_tokens: bool = True, **more
    ) -> dict:
        ids = embedded()[1](text, **more)["input_ids"]
        begin = [self.start] * add_special_tokens
        return {
            "input_ids": begin + ids
            if isinstance(text, str)
            else [begin + i for i in ids]
        }


def digest(*tensors: Tensor) -> str:
    """A hash of the tensors' bytes, types and shapes."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(
            tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()[:16]


def weights_of(model: nn.Module):
    """A hash of the blocks and norms, and the sum of what is outside: that is mostly embedding."""
    inside, outside = [], 0.0
    for _, parameter in sorted(model.named_parameters()):
        if parameter.numel() < 1e7:
            inside.append(parameter)
        else:
            outside += float(parameter.detach().sum(dtype=torch.float64))
    return [digest(*inside), outside]


def described(model: nn.Module, report):
    """A pruned model, and what is reported of it."""
    fields = ("error", "sparsity", "damping", "dead_inputs", "mask")
    return {
        "layers": {
            f"{layer.block}.{layer.name}": {
                field: getattr(layer, field) for field in fields
            }
            for layer in report.layers
        },
        "weights": weights_of(model),
        "details": report.details,
        "perplexity": helpers.perplexity(model, pages(), length=64, limit=2),
        **{name: getattr(report, name) for name in ("error", "sparsity", "parity")},
    }


# --- text ------------------------------------------------------------------------------------


@probe("text/calibration")
def calibration_text():
    found = {}
    for name, tokenizer, seed in (
        ("plain", embedded()[1], 0),
        ("another seed", embedded()[1], 1),
        ("start token", WithStart(), 0),
    ):
        drawn = helpers.calibration_tokens(
            "embedded", tokenizer, **DRAW | {"seed": seed}
        )
        identity = helpers.corpus_identity("embedded", drawn, tokenizer=tokenizer)
        found[name] = [digest(drawn), identity]
    return found


@probe("text/default")
def text_by_default():
    return digest(helpers.calibration_tokens("embedded", embedded()[1]))


@probe("text/evaluation")
def evaluation_text():
    text = helpers.evaluation_tokens("embedded", embedded()[1])
    begun = corpora.with_start(text[:256].view(2, 128), WithStart.start, "auto")
    return {"tokens": digest(text), "start": digest(begun)}


@probe("text/files")
def files_of_text():
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {
            "a.txt": "A text with an end.\r\nIt has two lines. " * 20,
            "b.jsonl": "".join(
                f'{{"text": "Document {n} is short."}}\n' for n in range(40)
            ),
        }.items():
            path = Path(folder, name)
            path.write_text(content, "utf-8")
            drawn = helpers.calibration_tokens(
                path, embedded()[1], **DRAW | {"length": 16}
            )
            whole = helpers.evaluation_tokens(path, WithStart())
            found[name] = [
                digest(drawn),
                digest(whole),
                helpers.corpus_identity(path, drawn),
            ]
    return found


@probe("text/published")
def published_text():
    """The papers' own draws, from documents that are here."""
    documents = corpora.c4_documents()[:32]
    rows = datasets.Dataset.from_dict({"text": documents})
    draw = DRAW | {"length": 256}
    with mock.patch.object(corpora, "_hub_rows", lambda *_: rows):
        found = {
            source: digest(
                helpers.calibration_tokens(source, embedded()[1], **draw),
                helpers.calibration_tokens(
                    source, WithStart(), **draw, start_token=False
                ),
            )
            for source in ("c4", "wikitext2")
        }
        whole = helpers.evaluation_tokens("wikitext2", embedded()[1])
    return found | {"evaluation": digest(whole)}


@probe("text/overlapping")
def overlapping_text():
    """More windows than the text holds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "short.txt")
        path.write_text("A text that is read again and again. " * 20, "utf-8")
        drawn = helpers.calibration_tokens(path, embedded()[1], **DRAW | {"length": 32})
    return digest(drawn)


@probe("text/offsets")
def offsets():
    """Windows in a text that is too short, that they fill, and with room."""
    return {n: corpora._offsets(n, 4, 16, Random(0)) for n in (40, 64, 65, 200)}


@probe("text/one window")
def one_window():
    """Of wikitext2, from a text that is hardly longer or no longer than it."""
    texts = corpora.c4_documents()[:2]
    length = len(embedded()[1](" ".join(texts))["input_ids"])
    with mock.patch.object(corpora, "_hub_rows", lambda *_: {"text": texts}):
        return [
            digest(
                helpers.calibration_tokens(
                    "wikitext2", embedded()[1], **DRAW | {"length": length - fewer}
                )
            )
            for fewer in (0, 1, 2, 3)
        ]


@probe("text/split")
def split_text():
    given = dict(web_windows=2, sequences=4, guide_sequences=2, repair_windows=3)
    given |= dict(pool=10, length=32, calibration_seed=0)
    given |= dict(calibration="embedded", start_token="auto")
    split = draw_windows(given, embedded()[1])
    return {name: digest(windows) for name, windows in split._asdict().items()}


# --- layers ----------------------------------------------------------------------------------


@probe("masks")
def selections():
    weight, gram, _ = problem()
    real = weight.abs() * gram.diagonal().sqrt()
    found = {}
    for name, score in {
        "real": real,
        "ties": (real * 8).round(),
        "half": real.bfloat16(),
    }.items():
        for sparsity in (0.0, 0.37, 0.6, 0.999):
            for budget in masks.BUDGETS:
                kept = helpers.select(score, sparsity, "unstructured", budget)
                found[f"{name}, {sparsity}, {budget}"] = masks.mask_hash(kept)
        for pattern in ("2:4", "4:8"):
            for sparsity in (0.3, 0.5):
                kept = helpers.select(score, sparsity, pattern)
                found[f"{name}, {pattern}, {sparsity}"] = masks.mask_hash(kept)
    return found


@probe("masks/definitions")
def definitions():
    """A mask by sorting, and the threshold as a GPU finds it."""
    score = problem()[0][:64].clone()
    score[:, :575:5] = score[:, 1::5]  # ties
    score[:, 7], score[:, 11] = torch.inf, 0
    return {
        zeros: [
            masks.mask_hash(masks.keep_largest_by_sorting(score, zeros)),
            digest(selection.bisect(score, zeros)),
        ]
        for zeros in (1, 100, 345, 575)
    }


@probe("masks/equal")
def equal_scores():
    """One score everywhere, and for all that stay."""
    rising = torch.arange(16.0).clamp(max=8).expand(4, -1)
    return {
        f"{name}, {budget}": masks.mask_hash(
            helpers.select(score, 0.5, "unstructured", budget)
        )
        for name, score in {"one": torch.ones(4, 16), "two": rising}.items()
        for budget in masks.BUDGETS
    }


@probe("schedules")
def schedules():
    return {
        "cubic": [helpers.cubic_schedule(0.6, step, 15) for step in range(17)],
        "rates": [training.rate_at(step, 64) for step in range(1, 65)],
        "curve": updates.trace_points(200),
        "windows": {effort: helpers.windows_of(effort) for effort in recipe.EFFORTS},
    }


@probe("studies/checks")
def checks_of_a_method():
    """What a method is given to be checked with."""
    given = []

    def solve(weight, gram, *, sparsity, pattern, keep=None):
        given.append([sparsity, str(pattern), digest(weight, gram)])
        given[-1].append(None if keep is None else digest(keep))
        return helpers.METHODS["wanda"].__wrapped__(
            weight, gram, sparsity=sparsity, pattern=pattern, keep=keep
        )

    with mock.patch.dict(helpers.METHODS):
        helpers.register("probe", budget="output")(solve)
        return [method_checks.check_method("probe"), given]


@probe("studies/metrics")
def metrics_of_a_pipeline():
    """A pruning and a repair of written numbers."""
    shape, mask = (4, 8), "0" * 16
    layers = [
        LayerReport(0, name, shape, sparsity, error, 0.1, 0, 1.0, mask)
        for name, sparsity, error in (("k", 0.5, 0.25), ("v", 0.75, 0.5))
    ]
    report = PruneReport("admm-grad", "unstructured", layers)
    repaired = DistilReport([3.0, 2.5], [(0, 3.5), (1, 2.75), (2, 2.875)], 1, "", 9.0)
    seconds = dict(allocate=1.0, prune=2.0, repair=4.0, evaluate=8.0)
    return [
        pipelines.pipeline_metrics({"perplexity": 20.0}, seconds, report, after, 99)
        for after in (None, repaired)
    ]


@probe("schedules/ladder")
def ladder():
    """The damping that is tried, where only the last is enough."""
    tried = {0.0: [], 0.003: [], 0.3: []}
    for given, rungs in tried.items():
        climb_damping(
            given, lambda rung, rungs=rungs: rungs.append(rung) or rung >= 1.0 or None
        )
    return tried


@probe("layers/gram")
def grams():
    weight, gram, other = problem()
    scaled, norms = normalise(gram)
    pruned_weight = weight * helpers.select(weight.abs(), 0.6, "unstructured")
    return {
        "gram": digest(gram, other, helpers.gram_of(weight)),
        "scaled": digest(scaled, norms, damp(scaled, 0.1)),
        "error": helpers.relative_error(weight, pruned_weight, gram),
    }


@probe("layers/solvers")
def solvers():
    """Every update on one mask."""
    weight, gram, _ = problem()
    keep = helpers.select(weight.abs() * gram.diagonal().sqrt(), 0.6, "unstructured")
    given = (weight, gram, keep)
    adam = dict(optimiser="adam", learning_rate=0.1, iterations=20)
    found = {
        "admm": helpers.refit(*given).weight,
        "admm, no scaling": helpers.refit(*given, precondition=False, rho=3.0).weight,
        "exact": helpers.exact_least_squares(*given, damping=0.1),
        "cg": gradient_methods.conjugate_gradients(*given, iterations=20).weight,
        "adam": gradient_methods.gradient_refit(*given, **adam).weight,
        "sgd": gradient_methods.gradient_refit(
            *given, **adam | {"optimiser": "sgd"}, precondition=True
        ).weight,
    }
    for method in ("sparsegpt", "alps"):
        found[method] = helpers.METHODS[method](*given[:2], keep=keep).weight
    return {
        name: [helpers.relative_error(weight, new, gram), digest(new)]
        for name, new in found.items()
    }


@probe("admm/as written")
def as_written():
    """The paper's loop as it is read; records come from its fast form."""
    weight, gram, _ = problem()
    G, norms = damped_system(gram, 0.1)
    W0 = weight * norms
    one, half = (helpers.select(W0.abs(), s, "unstructured") for s in (0.6, 0.5))
    given = {
        "grad": (gradual_mask(0.6), {}),
        "one mask": (fixed_mask(one), {}),
        "2:4": (gradual_mask(0.5, "2:4"), dict(iterations=16, rho=2.0)),
        "keep": (fixed_mask(half), {}),
    }
    found = {}
    for name, (project, more) in given.items():
        Z = admm(W0, G, project, **more)
        found[name] = digest(Z, Z != 0)
    return found


@probe("layers/dead inputs")
def with_dead_inputs():
    """Inputs that were always zero, which real text hardly gives."""
    weight, gram, _ = problem()
    gram = gram.clone()
    gram[[3, 100]] = 0
    gram[:, [3, 100]] = 0
    given = {
        "admm-grad": {},
        "admm-grad, no scaling": dict(precondition=False),
        "admm1": {},
        "sparsegpt": {},
        "wanda": {},
        "alps": {},
    }
    found = {}
    for name, options in given.items():
        solve = helpers.METHODS[name.partition(",")[0]]
        solved = solve(weight, gram, sparsity=0.6, **options)
        found[name] = [
            solved.error,
            solved.damping,
            solved.dead_inputs,
            digest(solved.weight),
        ]
    few = slice(8)  # an equation for each output
    exact = helpers.exact_least_squares(
        weight[few], gram, helpers.select(weight[few].abs(), 0.5, "unstructured")
    )
    return found | {"exact, no damping": digest(exact)}


@probe("layers/few weights")
def with_few_weights():
    """Outputs that keep nothing, one weight or two, which are solved before the last iteration."""
    weight, gram, _ = problem()
    weight = weight[:4] / 10_000
    keep = torch.zeros_like(weight, dtype=torch.bool)
    keep[1, 5] = keep[2, 7] = keep[2, 70] = True
    one = torch.zeros_like(keep)
    one[1, 5] = True
    adam = dict(optimiser="adam", learning_rate=0.1, iterations=5)
    cg = gradient_methods.conjugate_gradients
    return {
        "cg": digest(cg(weight, gram, keep, iterations=8).weight),
        "adam": digest(
            gradient_methods.gradient_refit(weight, gram, one, **adam).weight
        ),
        "admm": digest(helpers.refit(weight, gram, keep).weight),
        "exact": digest(helpers.exact_least_squares(weight, gram, keep)),
    }


@probe("studies/update")
def study_of_updates():
    return updates.update_study(*problem(), sparsities=(0.6,), iterations=25)


@probe("studies/masks")
def study_of_masks():
    return mask_rules.mask_study(*problem(), sparsities=(0.5, 0.6))


# --- models ----------------------------------------------------------------------------------

# the four layers of an attention: a second, not six; and two small ones
FEW = dict(blocks=1, ignore=["*.mlp.*"])
NARROW = dict(blocks=1, ignore=["*.mlp.*", "*.q_proj", "*.o_proj"])


@probe("admm/grad-60")
@probe("admm/few", **NARROW)
@probe("admm/grad-2of4", pattern="2:4", blocks=1)
@probe("admm/admm1-60", **FEW, method="admm1")
@probe("admm/admm1-2of4", **FEW, method="admm1", pattern="2:4")
@probe("admm/released", **FEW, schedule="released")
@probe("admm/budget-output", **FEW, budget="output")
@probe("admm/not-preconditioned", **FEW, precondition=False)
@probe("admm/options", **FEW, iterations=30, mask_steps=10, rho=2.0, damping=0.05)
@probe("admm/exact", **NARROW, finish="exact")
@probe("admm/exact on one mask", **NARROW, method="admm1", finish="exact")
@probe("methods/magnitude-60", method="magnitude")
@probe("methods/magnitude-2of4", **FEW, method="magnitude", pattern="2:4")
@probe("methods/magnitude-budget", **FEW, method="magnitude", budget="output")
@probe("methods/wanda-60", method="wanda")
@probe("methods/wanda-2of4", method="wanda", pattern="2:4", blocks=1)
@probe("methods/wanda-budget", **FEW, method="wanda", budget="matrix")
@probe("methods/sparsegpt-60", method="sparsegpt")
@probe("methods/sparsegpt-few", **NARROW, method="sparsegpt")
@probe("methods/sparsegpt-2of4", method="sparsegpt", pattern="2:4", blocks=1)
# less text than inputs of `down`: a factor needs damping from the ladder
@probe("methods/sparsegpt-ladder", method="sparsegpt", damping=0.0, blocks=1)
@probe("methods/alps-60", **FEW, method="alps")
@probe("methods/alps-2of4", **NARROW, method="alps", pattern="2:4")
@probe("methods/alps-short", **NARROW, method="alps", iterations=4)
@probe("methods/own", **FEW, method="wanda-refit")
@probe("passes/one", method="wanda", passes=1)
@probe("passes/batch", **FEW, method="wanda", passes=1, batch=3)
@probe("passes/bfloat16", method="wanda", precision="bfloat16", blocks=1)
@probe("passes/ignore", method="wanda", ignore=["*.v_proj", "1.mlp.*"])
def pruned(blocks: int = BLOCKS, method: str = "admm-grad", **arguments):
    """A copy of the model pruned with these arguments, where they say nothing else to 60 %."""
    settings = dict(method=method, batch=1, progress=False) | arguments
    if "pattern" not in arguments:
        settings.setdefault("sparsity", 0.6)
    model = fresh(blocks)
    text = None if method == "magnitude" else tokens()
    return described(model, helpers.prune_model(model, text, **settings))


@probe("passes/importance")
def by_importance():
    """A sparsity for each layer, and an importance for each output."""
    shapes = {
        f"0.self_attn.{name}_proj": rows
        for name, rows in dict(q=576, k=192, v=192, o=576).items()
    }
    drawn = torch.Generator().manual_seed(0)
    return pruned(
        **FEW,
        sparsity={key: 0.5 + 0.05 * place for place, key in enumerate(shapes)},
        importance={
            key: torch.rand(rows, generator=drawn) + 0.5 for key, rows in shapes.items()
        },
    )


@probe("passes/half")
def in_half_precision():
    model = fresh(1)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    settings = dict(method="sparsegpt", sparsity=0.6, progress=False)
    return described(model, helpers.prune_model(model, tokens(), **settings))


@probe("streamed")
def streamed():
    with tempfile.TemporaryDirectory() as folder:
        source, new = Path(folder, "dense"), Path(folder, "pruned")
        with contextlib.redirect_stderr(io.StringIO()):
            fresh(1).save_pretrained(source)
            embedded()[1].save_pretrained(source)
        where = dict(device="cpu", dtype="float32")
        target = dict(method="wanda", sparsity=0.6, progress=False)
        report = helpers.prune_checkpoint(source, new, tokens(), **target, **where)
        model, _ = helpers.load_streamed(new, **where)
        values = {}
        for path in new.glob("*.safetensors"):
            values |= safetensors.torch.load_file(path)
        return {
            "weights": {name: digest(tensor) for name, tensor in values.items()},
            "error": report.error,
            "perplexity": helpers.perplexity(model, pages(), length=64, limit=4),
        }


@probe("capture")
def replayed():
    model = embedded()[0]
    calls = blocks.record_calls(model, tokens()[:2])
    return {
        "stream": digest(blocks.embed(model, tokens(), 2)),
        "parity": blocks.check_parity(model, calls, tokens()[:2].flip(1)),
        "norms": digest(hidden_states.stream_norms(model, tokens()[:2])),
        "identity": helpers.model_identity(model),
    }


@probe("families/gemma", config=GEMMA)
@probe("families/gpt2", config=GPT2)
def of_family(config: Any):
    """Another architecture, tiny and random: from guide to likelihoods."""
    model, text = tiny(config)
    dense = copy.deepcopy(model)
    found = helpers.guide(model, text[:2], sparsity=0.5)
    report = helpers.prune_model(
        model,
        text,
        method="admm-grad",
        sparsity=found.sparsity,
        importance=found.importance,
        passes=1,
        progress=False,
    )
    repaired = helpers.distil(model, dense, text, held_out=1)
    trees = [token_trees.Tree(), token_trees.Tree()]
    ends = [trees[n % 2].add(row)[-1] for n, row in enumerate(text[:, :20].tolist())]
    kept = torch.tensor([*ends[::2], *(len(trees[0].nodes) + n for n in ends[1::2])])
    with torch.no_grad():
        logits = token_trees.run_trees(model, trees, kept)
    return {
        "layers": [[layer.error, layer.mask] for layer in report.layers],
        "weights": weights_of(model),
        "repair": repaired.losses,
        "owl": helpers.owl(dense, text, sparsity=0.5),
        "perplexity": helpers.perplexity(model, text.flatten(), length=16),
        "trees": [token_trees.runs_trees(model), digest(logits)],
    }


@probe("families/gpt-neo", config=GPT_NEO)
@probe("families/gpt2 with masks", config=GPT2_WITH_MASKS)
def of_blocks_with_more(config: Any):
    """A block's output is a tuple, or masks are its second argument."""
    model, text = tiny(config)
    calls = blocks.record_calls(model, text[:2])
    found = [blocks.check_parity(model, calls, text[2:])]
    found.append(digest(hidden_states.stream_norms(model, text)))
    for passes in (1, 2):
        new = copy.deepcopy(model)
        report = helpers.prune_model(
            new,
            text,
            method="admm1",
            pattern="2:4",
            passes=passes,
            progress=False,
        )
        found.append([weights_of(new), report.error, report.parity])
    return found


@probe("families/tiny")
def random_model():
    """The model of the plan smoke."""
    model, _ = helpers.load_model("tiny", device="cpu", dtype="float32")
    before = [digest(*model.parameters()), helpers.model_identity(model)]
    helpers.prune_model(model, method="magnitude", sparsity=0.3, progress=False)
    return [before, {name: digest(m) for name, m in helpers.masks_of(model).items()}]


@probe("passes/halved")
def out_of_memory():
    """Four sequences at a time are too many, and so are three."""
    model, text = tiny(GEMMA)
    whole = block_grams.run_block

    def small(block: nn.Module, rows: Tensor, call: Any) -> Tensor:
        if len(rows) > 2:
            raise torch.OutOfMemoryError
        return whole(block, rows, call)

    with mock.patch.object(block_grams, "run_block", small):
        report = helpers.prune_model(
            model, text, method="wanda", sparsity=0.5, batch=4, progress=False
        )
    return [report.details, [[layer.error, layer.mask] for layer in report.layers]]


@probe("streamed/resumed")
def resumed():
    """Stopped in its second block, and called again."""
    model, text = tiny(GEMMA)

    def stop(done: int, total: int, name: str):
        if name.startswith("block 1"):
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        source, new = Path(folder, "dense"), Path(folder, "pruned")
        model.save_pretrained(source)
        given = dict(method="admm-grad", sparsity=0.5, ignore=["0.*.up_proj"])
        where = dict(device="cpu", dtype="float32")
        with contextlib.suppress(KeyboardInterrupt):
            helpers.prune_checkpoint(source, new, text, **given, **where, progress=stop)
        report = helpers.prune_checkpoint(
            source, new, text, **given, **where, progress=False
        )
        pruned_model, _ = helpers.load_streamed(new, **where)
        values = {}
        for path in new.glob("*.safetensors"):
            values |= safetensors.torch.load_file(path)
        return {
            "weights": {name: digest(values[name]) for name in sorted(values)},
            "layers": [[layer.error, layer.mask] for layer in report.layers],
            "resumed": report.resumed,
            "identity": helpers.model_identity(pruned_model),
            "perplexity": helpers.perplexity(pruned_model, text.flatten(), length=16),
        }


# --- beyond the layers -----------------------------------------------------------------------


@probe("allocation/guide")
def guided():
    found = helpers.guide(fresh(), tokens()[:2], sparsity=0.6)
    importance = {key: digest(factors) for key, factors in found.importance.items()}
    return {"sparsity": found.sparsity, "importance": importance}


@probe("allocation/owl")
@probe("allocation/owl of three blocks", more=1)
def by_outliers(more: int = 0):
    """Of two blocks, each lies at its end of the range, with any threshold."""
    model = fresh()
    layers = find_blocks(model)
    layers.extend(copy.deepcopy(layers[0]) for _ in range(more))
    model.config.num_hidden_layers = len(layers)
    return helpers.owl(model, tokens(), sparsity=0.6)


@probe("allocation/ends")
def at_the_ends():
    """Where a layer would lose nothing or all, and an input was always zero."""
    model, text = tiny(GPT2)
    norm = model.transformer.h[0].ln_1
    norm.weight.data[3] = norm.bias.data[3] = 0
    found = {}
    for sparsity in (0.03, 0.96, 0.9995):
        guided = helpers.guide(model, text, sparsity=sparsity, spread=1.0)
        found[sparsity] = [
            guided.sparsity,
            digest(*guided.importance.values()),
            helpers.owl(model, text, sparsity=sparsity, spread=0.9, outliers=2.0),
        ]
    one_block = cut(tiny(BLOOM)[0], 1)  # which cannot differ from others
    return found | {"one block": helpers.owl(one_block, text, sparsity=0.5)}


@probe("allocation/levels")
def levels():
    """Equal scores on both sides of an edge, and fewer scores than levels."""
    score = problem()[0].abs()
    few = torch.tensor([[3.0, 1.0, 2.0, 1.0, 1.0, 0.0]])
    return [
        digest(allocation.levels_of(scores)) for scores in (score, score.round(), few)
    ] + [digest(allocation.levels_of((score * 20).round()))]


@probe("distil/all")
@probe("distil/two", blocks=BLOCKS)
@probe("distil/norms", parts="norms")
@probe("distil/bfloat16", precision="bfloat16")
# so large a rate that nothing is better than the start, which is then kept
@probe("distil/nothing", rate=1.0)
def distilled(blocks: int = 1, **settings):
    """Three steps from a model that Wanda has pruned, with two windows held out."""
    model = fresh(blocks)
    helpers.prune_model(model, tokens(), method="wanda", sparsity=0.6, progress=False)
    report = helpers.distil(model, fresh(blocks), tokens(5, 32), held_out=2, **settings)
    found = {
        name: getattr(report, name)
        for name in ("losses", "held_out", "kept", "warning")
    }
    return found | {"weights": weights_of(model)}


@probe("recipe/text")
def text_of_recipes():
    """How much is read, and in which type a model is loaded where none is given."""
    wanted = [("dense", ""), ("magnitude", ""), ("wanda", ""), ("wanda", "long")]
    kinds = [str(device.pick_dtype(None, name)) for name in ("cpu", "cuda")]
    return [kinds, [recipe.text_needed(*pair, 32) for pair in wanted]]


@probe("recipe/fast of a tiny model", effort="fast")
@probe("recipe/long of a tiny model", effort="long")
@probe("recipe/2of4 of a tiny model", effort="balanced", pattern="2:4")
def tiny_repaired(effort: str, pattern: str = "unstructured"):
    model, _ = tiny(GEMMA)
    text = torch.randint(3, 97, (recipe.windows_of(effort, 10), 8))
    sparsity = 0.5 if pattern == "unstructured" else None
    report = helpers.prune_and_repair(
        model, text, sparsity=sparsity, effort=effort, pattern=pattern, progress=False
    )
    return [weights_of(model), report.repair, report.error]


@probe("distil/defaults")
def by_default():
    model, _ = tiny(GEMMA)
    text = torch.randint(3, 97, (20, 8))
    dense = copy.deepcopy(model)
    helpers.prune_model(model, text, method="wanda", sparsity=0.6, progress=False)
    report = helpers.distil(model, dense, text)
    return [report.losses, report.held_out, report.kept, weights_of(model)]


@probe("recipe/balanced", effort="balanced", sparsity=0.6, ignore=["*.mlp.*"])
@probe("recipe/2of4", effort="fast", pattern="2:4", ignore=["*.mlp.*"])
def repaired(**settings):
    model = fresh(1)
    report = helpers.prune_and_repair(model, tokens(72, 16), progress=False, **settings)
    return described(model, report)


# --- evaluation ------------------------------------------------------------------------------


@probe("evaluate/perplexity")
def perplexities():
    model, text = embedded()[0], pages()
    begun = torch.cat([torch.tensor([model.config.bos_token_id]), text])
    return {
        "128": helpers.perplexity(model, text, length=128, limit=2),
        "512": helpers.perplexity(model, text[:512], length=512),
        "start token": helpers.perplexity(model, begun, length=128, limit=1),
        "windows": digest(perplexity.check_windows(model, begun, 128, 4)),
    }


@probe("evaluate/windows")
def windows_that_are_cut():
    rows = pages()[:256].view(4, 64)
    return helpers.perplexity(embedded()[0], rows, limit=2)


@probe("evaluate/default")
def windows_by_default():
    model, _ = tiny(GEMMA)
    return helpers.perplexity(model, torch.randint(3, 97, (4500,)))


def scored(task: str):
    """A task's scores, and what lm-eval has found for each item, its log-likelihoods among that."""
    whole, likelihoods = lm_eval.evaluate, []

    def look(**options):
        answer = whole(**options)
        likelihoods.extend(item["filtered_resps"] for item in answer["samples"][task])
        return answer

    with mock.patch.object(lm_eval, "evaluate", look):
        score = helpers.zero_shot(*embedded(), tasks=[task], limit=3)[task]
    texts = zero_shot.zero_shot_examples([task])[task]
    found = score.to_dict() | {"answers": score.answers, "likelihoods": likelihoods}
    text = hashlib.sha256(repr(texts).encode()).hexdigest()[:16]
    return {task: found | {"text": text}}


for name in tasks.TASKS:
    probe(f"zero-shot/{name}", task=name)(scored)


@probe("zero-shot/requests")
def requests_of_all_lengths():
    """Contexts that begin alike, and texts as long as the model takes, and longer."""
    model, _ = tiny(GPT2)
    text = torch.randint(3, 97, (140,)).tolist()
    requests = [
        (("", ""), text[:start] + text[70:end], text[-answer:])
        for start, end in ((20, 40), (20, 30), (30, 70), (0, 71), (50, 140))
        for answer in (1, 3, 8, 9, 10)
    ]
    harness = token_trees.TreeLM(
        pretrained=model,
        tokenizer=copy.deepcopy(embedded()[1]),
        batch_size=2,
        backend="causal",
    )
    with contextlib.redirect_stderr(io.StringIO()):
        return harness._loglikelihood_tokens(requests, disable_tqdm=True)


@probe("zero-shot/without trees")
def without_trees():
    configs = {"bloom": BLOOM, "gpt-neo": GPT_NEO}
    return {name: token_trees.runs_trees(tiny(c)[0]) for name, c in configs.items()}


@probe("zero-shot/metrics")
def metrics_of_tasks():
    """Accuracies, their errors and differences, from answers that are written here."""
    items = list(range(8))
    right = [[1, 1, 0, 1, 0, 0, 1, 1], [1, 0, 0, 1, 0, 1, 0, 1]]
    scores = {
        "piqa": zero_shot.TaskScore("piqa", 1.0, 1838, items, *right, items),
        "rte": zero_shot.TaskScore("rte", 1.0, 277, items, right[1], None, items),
    }
    many = [1] * 4000 + [0] * 400
    scores["sciq"] = zero_shot.TaskScore("sciq", 1.0, 4400, many, many, None, many)
    none = zero_shot.TaskScore("rte", 1.0, 277, items, [0] * 8, None, items)
    return [zero_shot.zero_shot_metrics(given) for given in (scores, {"rte": none})]


@probe("zero-shot/table")
def table_of_tasks():
    return {name: list(task) for name, task in tasks.TASK_TABLE.items()}


@probe("zero-shot/identity")
def identity_of_tasks():
    return tasks.tasks_identity()


# --- masks that are given ----------------------------------------------------------------------


@probe("masks given/as they are", method="admm1")
@probe("masks given/more zeros", method="admm-grad", sparsity=0.7)
@probe("masks given/more zeros, admm1", method="admm1", sparsity=0.7)
@probe("masks given/more zeros, alps", method="alps", sparsity=0.7)
@probe("masks given/more zeros, wanda", method="wanda", sparsity=0.7)
@probe("masks given/more zeros, magnitude", method="magnitude", sparsity=0.7)
def with_masks(**settings: Any):
    """A random model, on the masks of another method at 50 %."""
    half, text = tiny(GEMMA)
    model = copy.deepcopy(half)
    helpers.prune_model(half, text, method="wanda", sparsity=0.5, progress=False)
    report = helpers.prune_model(
        model, text, keep=helpers.masks_of(half), progress=False, **settings
    )
    layers = [[layer.error, layer.mask] for layer in report.layers]
    return [weights_of(model), report.details, layers]


# --- as a script -----------------------------------------------------------------------------


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A nested value as one level of name → number, text or None; without seconds."""
    if isinstance(value, Mapping):
        parts = [(key, inner) for key, inner in value.items() if key != "seconds"]
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        return {name: value}
    return {
        key: one
        for part, inner in parts
        for key, one in flat(inner, f"{name}/{part}" if name else str(part)).items()
    }


def code_of(project: Path) -> dict[str, str] | None:
    """What the checkout itself calls its code; None if it is older than such hashes."""
    try:
        from reproduction.fingerprint import tree_hashes
    except ImportError:
        return None
    return tree_hashes(project)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="probes whose name begins so")
    only = parser.parse_args().only
    chosen = {name: run for name, run in PROBES.items() if name.startswith(only)}
    if not chosen:
        parser.error(f"no probe begins with {only!r}: there are {', '.join(PROBES)}")
    torch.set_num_threads(1)
    package = Path(helpers.__file__).parent
    found = {"package": str(package), "code": code_of(package.parent)}
    for name, run in chosen.items():
        torch.manual_seed(0)
        found |= flat(run(), name)
    sys.stdout.write(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
