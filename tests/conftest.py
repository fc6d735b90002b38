"""What the tests share: one thread, no hub, and a check that an error is one useful line.

Test files carry no annotations: pytest supplies arguments by name. Modules that they share do.
"""

import os
import signal
import sys
from contextlib import contextmanager
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from helpers.errors import HelpersError
from reproduction.machine.nvidia import has_nvidia_driver

# nbformat would import it, which takes a second, for a check that it never makes
sys.modules.setdefault("rfc3987_syntax", None)
# torch is imported where it is used: under xdist the process that hands out tests needs none of it,
# and the others start once this file is read there


def pytest_report_header():
    """Which GPU tests/gpu run on."""
    name = "none, so they have a pretended one"
    if has_nvidia_driver():
        import torch

        if torch.cuda.is_available():
            name = torch.cuda.get_device_name()
    return f"GPU of tests/gpu: {name}"


@pytest.fixture(autouse=True)
def _quiet_and_repeatable():
    """Same seed, same single thread in every test: results do not depend on the order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_line_error():
    """`with one_line_error(BadParameter, "5:4"):` the error is ours, one line, and says so much."""

    @contextmanager
    def expect(kind, *words):
        with pytest.raises(kind) as caught:
            yield
        assert isinstance(caught.value, HelpersError)
        message = str(caught.value)
        assert message.strip()
        assert "\n" not in message
        for word in words:
            assert word in message, f"{word!r} is not in {message!r}"

    return expect


@pytest.fixture
def own_methods():
    """Methods that a test registers are taken out again."""
    from helpers.paper.methods import METHODS

    with mock.patch.dict(METHODS):
        yield


# those of seven seconds and more, the longest first
LONG = (
    *("book", "mutations", "exercises", "notebooks", "torchrun", "probes", "cluster"),
    *("gpu", "run", "tables", "file_to_file", "pretended", "zero_shot", "readme"),
)


def pytest_collection_modifyitems(items):
    """Long files first: at the end no worker is left with one while the other has nothing to do."""
    place = {f"test_{name}.py": number for number, name in enumerate(LONG)}
    # stable: a file's tests stay as they are
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_counts():
    """Ctrl-C is heard, also where tests run in the background of a shell, which ignores it there.

    A process that was started so would hand the deafness on to those that it starts.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
