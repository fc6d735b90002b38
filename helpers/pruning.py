"""`prune_loaded`: prune a model in the way that fits how it was loaded, and by what is asked.

The notebooks 04 and 05 and the command line call it, so that a run by hand, a plan and
`python -m helpers prune` do the same.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from helpers.beyond.recipe import prune_and_repair
from helpers.errors import BadParameter
from helpers.large import load_streamed, prune_checkpoint
from helpers.model.block_loop import Loop, PruneReport, Team
from helpers.model.models import model_identity, set_state, state_of
from helpers.model.prune import prune_model
from helpers.paths import cache_dir


def prune_loaded(
    model: nn.Module,
    tokens: Tensor | None = None,
    *,
    method: str,
    effort: str = "",
    folder: str | Path | None = None,
    team: Team | None = None,
    **arguments: Any,
) -> tuple[PruneReport | None, nn.Module]:
    """Prune a model that was just loaded; the report (None of "dense") and the pruned model.

    - With an effort `prune_and_repair` prunes it in place.
    - A model of `load_model` is pruned in place, by `prune_model`.
    - A model of `load_streamed` is pruned from file to file, by `prune_checkpoint`. The pruned
      model is streamed too, from `folder`; interrupted, the same call goes on in that folder.

    Args:
        tokens: as for `prune_model`; with an effort as for `prune_and_repair`.
        method: "dense", which leaves the model as it is, or as for `prune_model`.
        effort: "fast", "balanced" or "long"; "" for a method alone.
        folder: for a streamed model only, where its pruned copy goes.
        team: several processes for a streamed model, see `helpers.large.torchrun`.
        arguments: all others of the function that prunes, and the method's options.

    Raises BadParameter if a streamed model has no folder, and what the three functions raise.
    """
    if method == "dense":
        return None, model
    if effort:
        report = prune_and_repair(
            model, tokens, effort=effort, method=method, **arguments
        )
        return report, model
    reader = state_of(model).reader
    if reader is None:
        return prune_model(model, tokens, method=method, **arguments), model
    if folder is None:
        raise BadParameter(
            "the weights of this model are in its file: give the folder= of its pruned copy, or "
            "load it with load_model"
        )
    report = prune_checkpoint(
        reader.checkpoint.folder,
        folder,
        tokens,
        method=method,
        device=str(reader.device),
        dtype=reader.dtype,
        team=team,
        **arguments,
    )
    # as a path: a folder may have the name of a pinned model
    pruned, _ = load_streamed(
        Path(report.folder), device=str(reader.device), dtype=reader.dtype
    )
    # a record says which model was pruned
    set_state(pruned, identity=model_identity(model))
    return report, pruned


def method_options(
    arguments: Mapping[str, Any], *, effort: str = "", streamed: bool = False
) -> dict[str, Any]:
    """Those arguments of `prune_loaded` that the function it calls hands on to the method."""
    function = prune_checkpoint if streamed else prune_model
    if effort:
        function = prune_and_repair
    known = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name not in known}


def check_pruning(
    shapes: nn.Module,
    tokens: Tensor | None,
    *,
    method: str,
    effort: str = "",
    streamed: bool = False,
    **arguments: Any,
) -> None:
    """Raise what `prune_loaded` would refuse, for a model that is not loaded yet.

    shapes: see `helpers.model.models.load_shapes`. tokens: any of the shape of the text.
    """
    options = method_options(arguments, effort=effort, streamed=streamed)
    named = {name: arguments[name] for name in arguments.keys() - options}
    named.pop("allow_pruned", None)  # of which shapes say nothing
    Loop(shapes, tokens, method=method, options=options, **named)


def prune_on_disk(
    source: str | Path,
    name: str,
    tokens: Tensor | None = None,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str | None = None,
    **arguments: Any,
) -> tuple[PruneReport | None, nn.Module]:
    """`prune_loaded` of a model that is streamed, into a folder of the cache.

    name: of that folder in `pruned` in the cache, which is the caller's to delete
    (`report.discard`). source, revision, device, dtype: as for `load_streamed`.
    """
    model, _ = load_streamed(source, revision=revision, device=device, dtype=dtype)
    folder = cache_dir() / "pruned" / name
    return prune_loaded(model, tokens, folder=folder, **arguments)
