"""A pretended GPU: tensors that say cuda:0 and live in the memory of the CPU.

    with pretended_gpu() as card:
        model.to("cuda")
        prune_model(model, tokens, ...)
    card.waits, card.peak

It refuses to mix devices where CUDA does, notes what makes the host wait, and counts the bytes of
all tensors that are alive (what an operator takes inside is not seen). The rest is the CPU's: the
numerics and the speed of kernels, streams, autocast's rules for CUDA, real memory.
"""

import contextlib
import threading
import weakref
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

TO, TENSOR, RUN = Tensor.to, torch.tensor, threading.Thread.run
CPU = torch.device("cpu")
# the host needs a number, or a shape that depends on numbers
WAITING = (
    "_local_scalar_dense equal is_nonzero nonzero masked_select _unique2 _linalg_eigh"
)
# these take tensors of both devices: places that the host names, and a copy
PLACES = ("index", "index_put_", "_index_put_impl_")
MIXED = (*PLACES, "copy_")


def mapped(change, value):
    """An argument or result of an operator, with its tensors changed."""
    if isinstance(value, (list, tuple)):
        return type(value)([mapped(change, item) for item in value])
    return change(value) if isinstance(value, Tensor) else value


class Card(TorchDispatchMode):
    """What a pretended GPU has seen.

    waits: what made the host wait; living, peak: bytes of the tensors on it; total: that it has.
    """

    total = 40 << 30

    def __init__(self):
        super().__init__()
        self.waits = []
        self.living = self.peak = 0
        self.storages = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {}  # each tensor by what it is on the CPU

        def inner(tensor):
            plain = tensor.inner if tensor.is_cuda else tensor
            given[id(plain)] = tensor
            return plain

        def outer(result):
            # in place, an operator returns what it was given
            if id(result) in given:
                return given[id(result)]
            return OnGPU(result) if on_gpu else result

        plain = mapped(inner, args)
        named = {name: mapped(inner, value) for name, value in (kwargs or {}).items()}
        on_gpu = any(tensor.is_cuda for tensor in given.values())
        name = func.overloadpacket.__name__
        if on_gpu:
            self.check(name, *given.values())
        # torch's own conversions of a dtype name the device below Python
        if named.get("device") and name != "_to_copy":
            on_gpu = named["device"].type == "cuda"
            named["device"] = CPU if on_gpu else named["device"]
        return mapped(outer, func(*plain, **named))

    def check(self, name, first, *others):
        """Refuse tensors of two devices, and note a wait."""
        here = [tensor for tensor in (first, *others) if not tensor.is_cuda]
        mixed = name in MIXED and (name != "index" or first.is_cuda)
        if not mixed and any(tensor.ndim for tensor in here):
            raise RuntimeError(f"{name}: expected all tensors on the same device")
        masks = name in PLACES and any(t.dtype is torch.bool for t in others)
        to_host = name == "copy_" and not first.is_cuda
        if masks or to_host or name in WAITING.split():
            self.waits.append(name)

    def hold(self, storage):
        """Count a storage until it is freed; a view has that of its base."""
        if storage not in self.storages:
            self.storages.add(storage)
            self.living += storage.nbytes()
            self.peak = max(self.peak, self.living)
            weakref.finalize(storage, self.free, storage.nbytes())

    def free(self, size):
        self.living -= size

    # that is for torch.compile, and takes time in each operator
    _should_skip_dynamo = classmethod(lambda cls: False)


class OnGPU(Tensor):
    """A tensor on the pretended GPU, whose numbers are those of `inner`."""

    card = None  # that is switched on

    @staticmethod
    def __new__(cls, inner):
        # below Python it is on the CPU, since a CPU's build has no backward pass for another device
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
        )
        made.inner = inner
        cls.card.hold(inner.untyped_storage())
        return made

    device = property(lambda self: torch.device("cuda:0"))
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, *call):
        # where the mode is off: inside a hook of a backward pass
        return cls.card.__torch_dispatch__(*call)

    def cpu(self):
        self.card.waits.append("to the CPU")
        return self.inner.clone()

    def tolist(self):
        return self.cpu().tolist()

    def __deepcopy__(self, memo):
        new = OnGPU(self.inner.clone())
        if isinstance(self, nn.Parameter):
            return nn.Parameter(new, self.requires_grad)
        return new


# below Python the next two take a tensor on the pretended GPU for one of the CPU
def to(tensor, *args, copy=False, **kwargs):
    """Tensor.to, for tensors without gradients."""
    if args and isinstance(args[0], Tensor):
        device, dtype = args[0].device, args[0].dtype
    else:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    if device is not None and device.type != tensor.device.type:
        tensor = tensor.cpu() if tensor.is_cuda else OnGPU(tensor.detach().clone())
    return TO(tensor, dtype or tensor.dtype, copy=copy)


def tensor(data, *, device=None, **kwargs):
    """torch.tensor."""
    if device is None or torch.device(device).type != "cuda":
        return TENSOR(data, device=device, **kwargs)
    return to(TENSOR(data, device=CPU, **kwargs), device)


@contextlib.contextmanager
def pretended_gpu():
    """Context manager: a machine with one GPU."""
    OnGPU.card = card = Card()
    _device_constructors()  # remembers functions of torch: its own, before one is replaced

    def run(thread):
        with card:  # a mode is of one thread
            RUN(thread)

    cuda = mock.patch.multiple(
        torch.cuda,
        _lazy_init=lambda: None,
        is_available=lambda: True,
        is_bf16_supported=lambda: True,
        device_count=lambda: 1,
        is_current_stream_capturing=lambda: False,
        set_device=lambda device: None,
        get_device_name=lambda device=None: "a pretended GPU",
        synchronize=lambda device=None: card.waits.append("synchronize"),
        mem_get_info=lambda: (card.total - card.living, card.total),
        max_memory_allocated=lambda device=None: card.peak,
        get_rng_state=lambda device: torch.empty(0, dtype=torch.uint8),
        set_rng_state=lambda state, device: None,
    )
    patch = mock.patch.object
    with (
        cuda,
        patch(Tensor, "to", to),
        patch(torch, "tensor", tensor),
        patch(threading.Thread, "run", run),
        # a build for CUDA would ask the driver
        patch(torch.accelerator, "current_accelerator", lambda **_: None),
        # a module that moves keeps its parameters
        patch(torch.__future__, "_swap_module_params_on_conversion", True),
        card,
    ):
        yield card
