"""The runs beside which one's own method stands (notebook 07)."""

from helpers.paths import reference_dir
from reproduction.fingerprint import is_done
from reproduction.labels import PRUNE_NOTEBOOK
from reproduction.plan import read_plan
from reproduction.records import Record, processor, read_record, read_records, record_id
from reproduction.runs import of_notebook, processor_of


def baselines(plan: str, method: str) -> tuple[list[Record], str]:
    """The pruning runs of a plan without those of `method`, and where they were made, a sentence.

    A run that was made on this machine with today's code counts; of the others the committed
    record does, which is of another processor's rounding.
    """
    committed = read_records(reference_dir(plan) / "records")
    here = [read_record(run.record_path) for run in read_plan(plan) if is_done(run)]
    records = {record_id(record): record for record in [*committed, *here]}
    rivals = [
        record
        for record in of_notebook(records.values(), PRUNE_NOTEBOOK)
        if record["parameters"]["method"] != method
    ]
    others = [record for record in rivals if record not in here]
    if not others:
        return rivals, f"All {len(rivals)} other runs were made on this machine."
    count = f"{len(others)} of {len(rivals)}" if here else f"The {len(rivals)}"
    text = f"{count} other runs came with the repository, made on "
    made_on = sorted(
        {processor_of(record) or "an unknown processor" for record in others}
    )
    text += "; ".join(made_on)
    if made_on == [processor()]:
        return rivals, f"{text}, as this machine is."
    return rivals, (
        f"{text}; this machine is {processor()}. Another processor alone moves a perplexity by "
        f"some percent: `make reproduce PLAN={plan}` makes those runs here."
    )
