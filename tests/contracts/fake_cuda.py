"""CUDA without a GPU: what was left on the CPU, and what asks for a value in the middle of a step.

    with fake_cuda() as gpu:
        network, images = gpu.moved((network, images))  # .to("cuda") of the code itself does, too
        loss = network(images)
    gpu.waits  # ["raykb/semi/freematch.py fairness: a number"]

Tensors on ``cuda`` have shape, type and device and no values (torch's ``FakeTensor``); those on the
CPU are real, with their values, so that draws and checks made there run as ever. Where both meet
in one operation there is an error as on a GPU: :class:`LeftOnCpu` says where, and what. A GPU
permits tensors without dimensions and indices from the CPU, and so does this.

What waits for the device is written down with its place, and the code goes on with made-up values:
a number is ``answer``, a mask chooses all rows or none. Only the forward pass runs: autograd asks
for a device that is there.
"""

import contextlib
import math
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_any, tree_map

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


class LeftOnCpu(RuntimeError):
    """An operation has tensors on the device and on the CPU."""


@contextlib.contextmanager
def fake_cuda(*, answer=True, answers=None):
    """Make ``cuda`` a device of tensors without values; yield a :class:`FakeCuda`.

    Args:
        answer: what is made up of every value that is asked for, and of every row of a mask.
        answers: other answers, by the name of the function that asks.
    """
    gpu = FakeCuda(answer, answers or {})
    with contextlib.ExitStack() as stack:
        stack.enter_context(gpu.fake)  # it keeps torch from starting CUDA
        stack.enter_context(_patched(nn.Module, "_apply", _apply))
        # else torch.autocast("cuda") does nothing but warn
        common = torch.cuda.amp.common
        stack.enter_context(_patched(common, "amp_definitely_not_available", lambda: False))
        stack.enter_context(_patched(torch.cuda, "is_bf16_supported", lambda *_, **__: True))
        stack.enter_context(warnings.catch_warnings())
        # copy.deepcopy of a parameter asks for it, and goes another way then
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        stack.enter_context(gpu)
        yield gpu


class _OneMode(FakeTensorMode):
    """What copies of its tensors have in common with them."""

    def __deepcopy__(self, memo):
        return self


class FakeCuda(TorchDispatchMode):
    """The mode; ``waits`` are the places, each once, that waited for the device."""

    def __init__(self, answer, answers):
        super().__init__()
        self.fake = _OneMode(allow_non_fake_inputs=False)
        self.waits, self._answer, self._answers = [], answer, answers

    def moved(self, value):
        """Return tensors, modules, or what they are nested in, on the device.

        Modules are moved in place, and are of no use without this device.
        """
        return tree_map(lambda x: x.to(CUDA) if isinstance(x, Tensor | nn.Module) else x, value)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not tree_any(_concerns, (args, kwargs)):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if torch.is_inference_mode_enabled() and func.namespace == "aten" and func._can_decompose():
            with self:  # in inference mode composite operations come whole
                return func.decompose(*args, **kwargs)
        made_up = _MADE_UP.get(func.overloadpacket)
        if made_up and any(_on_device(x) for x in (*args, *kwargs.values())):
            return made_up(self, *args, **kwargs)
        if func is aten.index.Tensor:
            args = (args[0], [self._rows(index) for index in args[1]])
        if func.overloadpacket in (aten.index_put, aten.index_put_) and args[2].dim():
            _ = [self._rows(index) for index in args[1]]  # a single number is filled in masked
        if func.overloadpacket in (aten._to_copy, aten.copy_) and _on_device(_source(func, args)):
            device = args[0].device if func.overloadpacket is aten.copy_ else kwargs.get("device")
            if device is not None and torch.device(device).type == "cpu":
                return self._to_host(func, args, kwargs)
        real = {}
        args, kwargs = tree_map(lambda x: self._lifted(x, real), (args, kwargs))
        try:
            out = func(*args, **kwargs)
        except RuntimeError as error:
            left = [one for one, _ in real.values() if one.dim()]
            if "device" not in str(error) or not left:
                raise
            what = ", ".join(f"{one.dtype} {tuple(one.shape)}" for one in left)
            raise LeftOnCpu(f"{_place()[1]}: {func} has on the CPU {what}") from error
        return tree_map(lambda x: real[id(x)][0] if id(x) in real else x, out)

    def _lifted(self, value, real):
        """Return a real tensor as a fake one of its device; remember whose it is."""
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return value
        with _disable_current_modes():
            fake = self.fake.from_tensor(value)
        real[id(fake)] = value, fake  # which keeps the number its own
        return fake

    def answer(self, what):
        """Write down that the code waits, and for what; return what is made up."""
        name, where = _place()
        if (place := f"{where}: {what}") not in self.waits:
            self.waits.append(place)
        return self._answers.get(name, self._answer)

    def _rows(self, index):
        """Return a mask as the numbers of the rows that were made up; other indices as they are."""
        if not _on_device(index) or index.dtype not in (torch.bool, torch.uint8):
            return index
        if index.dim() != 1:
            raise NotImplementedError(f"an index that is a mask of shape {tuple(index.shape)}")
        count = len(index) if self.answer("rows of a mask") else 0
        with self.fake:
            return torch.empty(count, dtype=torch.int64, device=CUDA)

    def _to_host(self, func, args, kwargs):
        """Return zeros on the CPU for what is fetched from the device."""
        self.answer("a copy to the host")
        with _disable_current_modes():
            if func.overloadpacket is aten.copy_:
                return args[0].zero_()
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)


def _place():
    """Return the innermost function of raykb, else of the tests, and its file before it."""
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        frames.append((Path(frame.f_code.co_filename), frame.f_code.co_name))
        frame = frame.f_back
    for room in (ROOT / "raykb", ROOT / "tests"):
        for path, name in frames:
            if path.is_relative_to(room) and path != Path(__file__).resolve():
                return name, f"{path.relative_to(ROOT)} {name}"
    return "?", "?"


def _number(gpu, tensor):
    kind = bool if tensor.dtype == torch.bool else float if tensor.is_floating_point() else int
    return kind(gpu.answer("a number"))


def _equal(gpu, *_):
    return bool(gpu.answer("whether tensors are equal"))


def _nonzero(gpu, tensor):
    count = tensor.numel() if gpu.answer("how many are not zero") else 0
    with gpu.fake:
        return torch.empty(count, tensor.dim(), dtype=torch.int64, device=CUDA)


def _bincount(gpu, tensor, weights=None, minlength=0):
    gpu.answer("the greatest number to count")
    with gpu.fake:
        dtype = torch.int64 if weights is None else weights.dtype
        return torch.empty(max(1, minlength), dtype=dtype, device=CUDA)


def _masked_select(gpu, tensor, mask):
    size = torch.broadcast_shapes(tensor.shape, mask.shape)
    count = math.prod(size) if gpu.answer("rows of a mask") else 0
    with gpu.fake:
        return torch.empty(count, dtype=tensor.dtype, device=CUDA)


_MADE_UP = {
    aten._local_scalar_dense: _number,
    aten.item: _number,
    aten.equal: _equal,
    aten.nonzero: _nonzero,
    aten.bincount: _bincount,
    aten.masked_select: _masked_select,
}


def _on_device(value):
    return isinstance(value, Tensor) and value.device.type == "cuda"


def _concerns(value):
    """Return whether an operation with this argument concerns the device."""
    return _on_device(value) or (isinstance(value, torch.device) and value.type == "cuda")


def _source(func, args):
    return args[1] if func.overloadpacket is aten.copy_ else args[0]


@contextlib.contextmanager
def _patched(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _apply(module, fn, recurse=True):
    """Replace what a module holds: torch would change its parameters in place, which these defy."""
    for one in module.modules() if recurse else [module]:
        for name, value in one._parameters.items():
            if value is not None:
                one._parameters[name] = nn.Parameter(fn(value.detach()), value.requires_grad)
        for name, value in one._buffers.items():
            if value is not None:
                one._buffers[name] = fn(value)
    return module
