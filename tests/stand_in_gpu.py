"""A stand-in for a GPU: tensors that report `cuda:0` while the CPU holds and computes them.

    make test-stand-in                                                      # every test that is not slow
    PYTHONPATH=tests python -m pytest -p stand_in_gpu tests/engine

It lets a machine without a GPU find what fails on one, in ovd and in its tests: operations that mix devices, GPU
tensors passed to numpy, kernels called with CPU tensors, and code that cannot be captured in a CUDA graph. It measures
no speed, and says little about numerics: torch's operations are the CPU's, convolutions and products that sum in
float32 are computed in it, and autocast is the CPU's. Triton's kernels, which take minutes in its interpreter, run only
with STAND_IN_KERNELS=1.
"""

import copy
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar

os.environ["TRITON_INTERPRET"] = "1"  # must be set before Triton is imported

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
FACTORIES = {
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "tensor", "zeros"
}  # fmt: skip
SYNCHRONIZING = {"aten::_local_scalar_dense", "aten::equal", "aten::masked_select", "aten::nonzero"}
"""Operations that make the CPU wait for their result."""
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
IN_PLACE_VIEWS = {"aten::squeeze_", "aten::unsqueeze_", "aten::t_", "aten::transpose_"}
CONVOLUTIONS = {"aten::convolution", "aten::convolution_backward"}
aten = torch.ops.aten
SUMMED_IN_FLOAT32 = {aten.mm.dtype: aten.mm.default, aten.mm.dtype_out: aten.mm.default}
"""Products with an output dtype, which only GPUs have, and the CPU's products that replace them."""


class OnGpu(Tensor):
    """A tensor of the stand-in; torch's C++ sees a CPU tensor, and dispatches each of its operations to this class."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        held = held.detach()
        made = Tensor._make_subclass(cls, held, False)
        made.held = held
        return made

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _dispatched(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnGpu":
        if id(self) not in memo:
            copied = OnGpu(self.held.clone()).requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copied._is_param = True
            copied.grad = copy.deepcopy(self.grad, memo)
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({self.held!r})"


def _held(x: Any) -> Any:
    return x.held if isinstance(x, OnGpu) else x


def _is_gpu(device: Any) -> bool:
    return device is not None and not isinstance(device, int) and torch.device(device).type == "cuda"


class Host:
    """Record of what the host does besides launching operations."""

    syncs: ClassVar[Counter[str]] = Counter()
    """Number of copies between devices, blocking or not, and of waits for the GPU, by operation."""
    captures = False
    """Whether a CUDA graph is being captured."""


def _sync(what: str) -> None:
    if Host.captures:
        raise RuntimeError(f"not permitted while a CUDA graph is captured: {what}")
    Host.syncs[what] += 1


def _dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    on_gpu = [x for x in tensors if isinstance(x, OnGpu)]
    _check_devices(name, args, tensors)
    chosen = tree_leaves(args[1]) if name in INDEXING else []
    by_mask = any(isinstance(index, OnGpu) and index.dtype == torch.bool for index in chosen)
    if name in SYNCHRONIZING or by_mask or (name == "aten::copy_" and len(on_gpu) < len(tensors)):
        _sync(name)
    if name in IN_PLACE_VIEWS:
        func(*map(_held, args))
        with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
            return func(*args)
    kwargs = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory")}
    out = _computed(func, *tree_map(_held, (args, kwargs)))
    known = {id(_held(x)): x for x in tensors}
    return tree_map(lambda x: known.get(id(x), OnGpu(x)) if isinstance(x, Tensor) else x, out)


def _check_devices(name: str, args: Any, tensors: list[Tensor]) -> None:
    """Raise CUDA's error for tensors on two devices; scalars and indices of the CPU are allowed."""
    if name in ("aten::_to_copy", "aten::copy_"):
        return
    of_cpu = [x for x in tensors if not isinstance(x, OnGpu) and x.ndim > 0]
    if name in INDEXING:
        if not isinstance(args[0], OnGpu):  # zeros that torch's C++ made for a gradient
            return
        of_cpu = [x for x in of_cpu if not any(x is index for index in tree_leaves(args[1]))]
    if of_cpu:
        shapes = [(x.device.type, tuple(x.shape)) for x in tensors]
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {shapes}")


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute the operation on the CPU, with float32 sums where a GPU has them and a CPU may not."""
    if func in SUMMED_IN_FLOAT32:
        *factors, dtype = args if "out" not in kwargs else (*args, kwargs["out"].dtype)
        product = SUMMED_IN_FLOAT32[func](*(x.float() for x in factors if isinstance(x, Tensor))).to(dtype)
        return kwargs["out"].copy_(product) if "out" in kwargs else product
    if func._schema.name in CONVOLUTIONS and args[0].dtype == torch.bfloat16:
        out = func(*(x.float() if isinstance(x, Tensor) else x for x in args), **kwargs)
        return tree_map(lambda x: x.bfloat16() if isinstance(x, Tensor) else x, out)
    return func(*args, **kwargs)


class _Moved(torch.autograd.Function):
    """A differentiable copy to the other device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.held.clone() if isinstance(x, OnGpu) else OnGpu(x.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Moved.apply(gradient)


def _placed(x: Tensor, gpu: bool) -> Tensor:
    if isinstance(x, OnGpu) == gpu:
        return x
    _sync("a copy from one device to the other")
    return _Moved.apply(x)


class Placement(TorchFunctionMode):
    """A function mode that moves and makes tensors in place of torch's C++, which takes all of them for CPU tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        x: Any = args[0] if args else None
        if func is Tensor.backward:  # functions in the backward pass make tensors, too
            with self:
                return torch.autograd.backward(x, kwargs.pop("gradient", None), **kwargs)
        if func is torch._C._nn.pad_sequence and isinstance(x[0], OnGpu):
            return OnGpu(func([part.held for part in x], *args[1:], **kwargs))
        if isinstance(x, Tensor):
            if func in (Tensor.cuda, Tensor.cpu):
                return _placed(x, func is Tensor.cuda)
            if func is Tensor.to:
                return _to(x, *args[1:], **kwargs)
            if func is Tensor.pin_memory:
                pinned = x.clone()
                pinned.is_in_pinned_memory = True  # type: ignore[attr-defined]
                return pinned
            if func is Tensor.is_pinned:
                return hasattr(x, "is_in_pinned_memory")
        if isinstance(x, OnGpu):
            if func in (Tensor.numpy, Tensor.__array__):
                raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu()")
            if func is Tensor.tolist:
                _sync("tolist")
                return x.held.tolist()
            if func is Tensor.new_tensor:
                return OnGpu(x.held.new_tensor(*args[1:], **kwargs))
            if func is Tensor.data.__get__:  # type: ignore[attr-defined]
                return OnGpu(x.held)
            if func is Tensor.data.__set__:  # type: ignore[attr-defined]
                x.held = args[1].held
        if any(isinstance(leaf, OnGpu) for leaf in tree_leaves((args, kwargs))) and "device" in kwargs:
            return _placed(func(*args, **{**kwargs, "device": None}), _is_gpu(kwargs["device"]))
        return func(*args, **kwargs)


def _to(x: Tensor, *others: Any, device: Any = None, copy: bool = False, non_blocking: Any = None, **form: Any) -> Any:
    """Replace `Tensor.to` in all of its forms."""
    rest = []
    for other in others:
        if isinstance(other, Tensor):
            device, form["dtype"] = other.device, other.dtype
        elif isinstance(other, str | torch.device):
            device = other
        elif isinstance(other, torch.dtype):
            rest.append(other)
    if x.is_meta or (device is not None and torch.device(device).type == "meta"):
        return x.to(*([] if device is None else [device]), *rest, **form)
    moved = x if device is None else _placed(x, _is_gpu(device))
    formed: Tensor = moved.to(*rest, **form) if rest or form else moved  # type: ignore[call-overload]
    return formed.clone() if copy and formed is x else formed


def _made_on_gpu(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap a factory such as `torch.zeros` to accept the stand-in as device."""

    def made(*args: Any, device: Any = None, **options: Any) -> Tensor:
        if not _is_gpu(device):
            return factory(*args, device=device, **options)
        if factory.__name__ in ("tensor", "as_tensor"):
            _sync(factory.__name__)
        requires_grad = options.pop("requires_grad", False)
        options.pop("pin_memory", None)
        tensor = factory(*args, **options)
        return (tensor if isinstance(tensor, OnGpu) else OnGpu(tensor)).requires_grad_(requires_grad)

    return made


class _Stream:
    """A stream of the stand-in, which runs everything immediately."""

    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass


def _autocast_of(real: Any) -> Callable[..., Any]:
    @contextmanager
    def autocast(device_type: str, dtype: Any = None, enabled: bool = True, **options: Any) -> Iterator[None]:
        before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with ExitStack() as stack:
            stack.enter_context(real("cpu", dtype=dtype, enabled=enabled, **options))
            if device_type == "cuda":
                stack.callback(torch.set_autocast_dtype, "cuda", before[1])
                stack.callback(torch.set_autocast_enabled, "cuda", before[0])
                torch.set_autocast_enabled("cuda", enabled)
                torch.set_autocast_dtype("cuda", dtype or before[1])
            yield

    return autocast


def _grouped_of(real: Any) -> Callable[..., Any]:
    def grouped(tensor_lists: Any, *options: Any) -> Any:
        """Group the lists' tensors by device and dtype; torch's C++ only knows the CPU as device."""
        device = GPU if isinstance(tensor_lists[0][0], OnGpu) else torch.device("cpu")
        return {(device, dtype): group for (_, dtype), group in real(tensor_lists, *options).items()}

    return grouped


def _captured(module: Any, _: Any, **options: Any) -> Callable[..., Any]:
    """Replace `torch.cuda.make_graphed_callables`."""

    def call(*args: Any) -> Any:
        Host.captures = True
        try:
            return module(*args)
        finally:
            Host.captures = False

    return call


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _replace(owner: Any, **attributes: Any) -> None:
    for name, value in attributes.items():
        setattr(owner, name, value)


def install() -> None:
    """Put the stand-in into torch, for the rest of the process."""
    import torchvision  # noqa: F401
    from triton.runtime.interpreter import GridExecutor

    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _replace(
        torch.cuda,
        Stream=_Stream,
        current_device=_always(0),
        current_stream=_always(_Stream()),
        device=_always(nullcontext()),
        device_count=_always(1),
        get_device_capability=_always((9, 0)),
        get_device_name=_always("stand-in"),
        get_rng_state=lambda *_: torch.get_rng_state(),  # the CPU draws random numbers
        graph_pool_handle=_always((0, 0)),
        is_available=_always(True),
        is_bf16_supported=_always(True),
        is_initialized=_always(True),
        make_graphed_callables=_captured,
        manual_seed=_always(None),
        manual_seed_all=_always(None),
        max_memory_allocated=_always(0),
        set_device=_always(None),
        set_rng_state=lambda state, *_: torch.set_rng_state(state),
        stream=_always(nullcontext()),
        synchronize=_always(None),
    )
    _replace(
        torch.accelerator,
        current_accelerator=_always(GPU),
        current_device_index=_always(0),
        is_available=_always(True),
        set_device_index=_always(None),
    )
    _replace(
        torch.optim.Optimizer,
        _accelerator_graph_capture_health_check=_always(None),
        _cuda_graph_capture_health_check=_always(None),
        _group_tensors_by_device_and_dtype=staticmethod(
            _grouped_of(torch.optim.Optimizer._group_tensors_by_device_and_dtype)
        ),
    )
    _replace(sys.modules["torchvision.ops.roi_align"], is_compile_supported=_always(False))
    autocast = _autocast_of(torch.autocast)
    for module in (torch, torch.amp):
        _replace(module, autocast=autocast)
    _device_constructors()  # fills its cache while the factories are torch's own
    _replace(torch, **{name: _made_on_gpu(getattr(torch, name)) for name in FACTORIES})

    launch = GridExecutor.__call__

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        if _with_kernels() and any(isinstance(x, Tensor) and not isinstance(x, OnGpu) for x in args):
            raise ValueError("a kernel cannot reach a tensor of the CPU")
        with torch._C.DisableTorchFunction():  # type: ignore[attr-defined]
            launch(self, *map(_held, args), **{name: _held(value) for name, value in kwargs.items()})

    GridExecutor.__call__ = launched
    run = threading.Thread.run

    def run_placed(self: threading.Thread) -> None:
        with Placement():
            run(self)

    threading.Thread.run = run_placed  # type: ignore[method-assign]
    Placement().__enter__()


def _with_kernels() -> bool:
    return os.environ.get("STAND_IN_KERNELS") == "1"


def pytest_configure(config: pytest.Config) -> None:
    install()


def pytest_sessionstart(session: pytest.Session) -> None:
    import ovd.kernels

    if not _with_kernels():
        _replace(ovd.kernels, supports=_always(False))
