"""Errors as a user meets them: what a kernel shows of them, as in JupyterLab, and mix-ups."""

import shutil

import families as fam
import nbformat
import papermill
import pytest
import saved
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager, KernelManager
from papermill.exceptions import PapermillExecutionError

from helpers import (
    calibration_tokens,
    evaluation_tokens,
    load_model,
    prune_model,
    save_pruned,
    zero_shot,
)
from helpers.errors import BadParameter
from helpers.paths import notebooks_dir, root
from reproduction.cell_order import result_headings
from reproduction.parameters import code_cells

BOOK = notebooks_dir() / "00_start_here.ipynb"
MISTAKE = "from helpers.options import check_whole\n\ncheck_whole('seed', -1)"


@pytest.fixture(scope="module")
def shown():
    """The lines of the error that a cell shows, run in a kernel of its own."""
    # without folders: this Python's kernel, whatever else is called python3 here
    specs = KernelSpecManager(kernel_dirs=[])
    manager = KernelManager(kernel_name="python3", kernel_spec_manager=specs)
    manager.start_kernel(cwd=str(root()))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=300)

    def run(code, **request):
        lines = []

        def hear(message):
            if message["msg_type"] == "error":
                lines.extend("\n".join(message["content"]["traceback"]).splitlines())

        client.execute_interactive(code, output_hook=hear, timeout=300, **request)
        return lines

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_a_mistake_in_the_first_cells_is_a_short_message(shown):
    cells = [source for source, _ in code_cells(BOOK)]
    opening = next(number for number, c in enumerate(cells) if "open_run(" in c)
    (parameters,) = (c for c in cells[:opening] if "sparsity" in c)
    for mistake, word in (
        ("sparsity = '0.5 %'", "'0.5 %'"),
        ("sparsity = 60.0", "0.6"),
        ("method = 'admm_grad'", "did you mean 'admm-grad'"),
        ("sparcity = 0.7", "'sparsity'"),
    ):
        assert not shown(f"{parameters}\n{mistake}")
        message, place = shown(cells[opening])
        assert message.startswith("BadParameter: ")
        assert word in message
        assert "open_run(" in place
    shown(f"{parameters}\ndel sparcity")
    assert not shown(cells[opening]), "nothing is left of the mistakes"
    for result in result_headings(BOOK):
        (message,) = shown(result)  # which the run itself refuses
        assert "not done yet" in message


def test_the_line_is_that_of_the_cell(shown):
    message, place = shown(
        f"def deep():\n    check_whole('n', 0)\n\n{MISTAKE[:39]}\ndeep()"
    )
    assert "n 0" in message
    assert "line 2 " in place
    place = shown(f"await __import__('asyncio').sleep(0)\n{MISTAKE}")[1]
    assert "line 4 " in place


def test_the_whole_traceback_can_be_had(shown):
    assert len(shown(MISTAKE)) == 2
    shown("%xmode Verbose")
    whole = shown("%tb")
    assert len(whole) > 10
    assert any("options.py" in line for line in whole)
    shown("%xmode Context")
    assert len(shown("%tb")) == 2


def test_papermill_keeps_the_whole_traceback(tmp_path):
    class Kernel(AsyncKernelManager):
        def _kernel_spec_manager_default(self):
            return KernelSpecManager(kernel_dirs=[])

    cell = nbformat.v4.new_code_cell(MISTAKE)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "book.ipynb")
    with pytest.raises(PapermillExecutionError, match="seed -1") as caught:
        papermill.execute_notebook(
            tmp_path / "book.ipynb",
            tmp_path / "ran.ipynb",
            kernel_name="python3",
            language="python",
            kernel_manager_class=Kernel,
            cwd=str(root()),
            progress_bar=False,
        )
    *_, cell = nbformat.read(tmp_path / "ran.ipynb", 4).cells
    for lines in (caught.value.traceback, cell.outputs[-1].traceback):
        assert "options.py" in "".join(lines)


# --- what is mixed up or misspelt ------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A model, pruned, and its tokenizer, which has neither a start nor an end token."""
    model, tokenizer = load_model(saved.save(tmp_path_factory.mktemp("model") / "m"))
    prune_model(model, method="magnitude", sparsity=0.5)
    return model, tokenizer


@pytest.mark.parametrize(
    "given, words",
    [
        ({"progress": "yes"}, ("progress 'yes'", "False")),
        ({"progress": 1}, ("progress 1",)),
        ({"ignore": "*.down_proj"}, ("['*.down_proj']",)),
        ({"ignore": ["down_proj"]}, ("'*down_proj*'",)),
        ({"sparsty": 0.5}, ("mean 'sparsity'",)),
        ({"iteration": 3}, ("mean 'iterations'",)),
    ],
)
def test_an_argument_that_is_wrong(given, words, one_line_error):
    model = fam.build()
    before = fam.snapshot(model)
    given = {"method": "admm-grad", "sparsity": 0.5, **given}
    with one_line_error(BadParameter, *words):
        prune_model(model, fam.random_tokens(), **given)
    assert not fam.changed(model, before)


def test_something_else_where_a_tokenizer_belongs(loaded, tmp_path, one_line_error):
    model, tokenizer = loaded
    for other in (None, model, "text"):
        kind = type(other).__name__
        with one_line_error(BadParameter, "tokenizer", kind):
            calibration_tokens("embedded", other, sequences=1, length=8)
        with one_line_error(BadParameter, "tokenizer", kind):
            evaluation_tokens("embedded", other)
        with one_line_error(BadParameter, "tokenizer", kind):
            save_pruned(model, other, tmp_path / "to")
        with one_line_error(BadParameter, "tokenizer", kind):
            zero_shot(model, other, tasks=["rte"], limit=2)
    with one_line_error(BadParameter, "eos_token"):
        zero_shot(model, tokenizer, tasks=["rte"], limit=2)
    assert not (tmp_path / "to").exists()


def test_a_folder_that_holds_no_whole_model(tmp_path, one_line_error):
    folder = tmp_path / "m"
    for lost, word in (
        (".safetensors", "safetensors"),
        ("tokenizer.json", "the tokenizer of"),
        ("config.json", "holds no config.json"),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        saved.save(folder)
        for path in folder.iterdir():
            if path.name.endswith(lost) and path.name != "generation_config.json":
                path.unlink()
        with one_line_error(
            BadParameter, word, "copy it again" if lost != "config.json" else "saved"
        ):
            load_model(folder)
