"""A device without memory: code runs on it as on an accelerator, and the bytes that it would hold are counted.

Tensors on `DEVICE`, torch's meta device, have shapes and dtypes and no values. Tensors on the CPU stay real, so that
draws, scores and numbers of samples are what they are. A number that is read back from the device is 1, a tensor is
zeros. So a whole training step runs, at real size, on a machine that could not hold it.

Three things of an accelerator are put in its place. Autocast knows no meta device: `Autocast` casts what torch's own
casts on CUDA, and keeps the casts of trained weights as long. Attention is one kernel that holds no matrix of scores.
Optimisers run over lists of tensors (``foreach``), whose temporaries are as large as the trained weights.

Not counted: workspaces of kernels (cuBLAS, cuDNN, the backward pass of attention), the context of the driver, and what
the caching allocator loses to fragments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vidalign.engine.base import Dispatch
from vidalign.engine.meter import CountedBytes, Kwargs, end_of, size_of

DEVICE = torch.device("meta")
SMALL = 2**16
"""Most elements of a tensor on the CPU that is drawn for real; a larger one is zeros."""
aten = torch.ops.aten


class LiveBytes(CountedBytes):
    """Counts the bytes of all storages on `DEVICE` that were made inside and are alive. last: see `end_of`."""

    def __init__(self, *, last: bool = True) -> None:
        super().__init__(DEVICE.type)
        self.last = last
        self._plain: dict[Any, bool] = {}
        """Whether a function returns one tensor of its own."""
        self._outputs: dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype]] = {}

    def __torch_dispatch__(
        self, func: Any, types: tuple[type, ...], args: tuple[Any, ...] = (), kwargs: Kwargs | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").split(".")[0]
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in args):
            if name in READS:
                return self.counted(READS[name](*args, **kwargs))
            if name in TO_CPU and "device" in kwargs and torch.device(kwargs["device"]).type == "cpu":
                return torch.zeros((), dtype=kwargs.get("dtype") or args[0].dtype).expand(args[0].shape).clone()
            if name == "copy_" and not args[0].is_meta:
                return args[0]
        elif name in DRAWS:
            return self._drawn(name, func, args, kwargs)
        return self.counted(self._quickly(func, args, kwargs))

    def _quickly(self, func: Any, args: tuple[Any, ...], kwargs: Kwargs) -> Any:
        """What `func` returns. Shapes that are worked out in Python are kept: blocks and chunks are alike."""
        if func not in self._plain:
            schema = func._schema
            aliases = any(part.alias_info is not None for part in (*schema.arguments, *schema.returns))
            self._plain[func] = not aliases and len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor"
        key = (func, _signature(args), _signature(tuple(kwargs.items()))) if self._plain[func] else None
        try:
            if key in self._outputs:
                size, stride, dtype = self._outputs[key]
                return torch.empty_strided(size, stride, dtype=dtype, device=DEVICE)
        except TypeError:  # an argument that cannot be hashed
            key = None
        out = func(*args, **kwargs)
        if key is not None and out.is_meta:
            self._outputs[key] = (out.shape, out.stride(), out.dtype)
        return out

    def _drawn(self, name: str, func: Any, args: tuple[Any, ...], kwargs: Kwargs) -> Any:
        """Few random numbers as they are; one alone at its end; many are zeros, since none of them is read."""
        if name.endswith("_"):
            return args[0] if args[0].numel() > SMALL else func(*args, **kwargs)
        size = size_of(args)
        if name == "randint" and not size:
            self.drawn = True
            return end_of(args, self.last)
        if math.prod(size) > SMALL:
            return torch.zeros(size, dtype=kwargs.get("dtype"))
        return func(*args, **kwargs)


def _signature(values: Any) -> Any:
    """What the shape of a result depends on."""
    if isinstance(values, Tensor):
        return (values.shape, values.stride(), values.dtype, values.is_meta)
    return (type(values), *map(_signature, values)) if isinstance(values, list | tuple) else values


def _number(like: Tensor) -> bool | int | float:
    return 1.0 if like.is_floating_point() else like.dtype == torch.bool or 1


def _all_true(mask: Tensor) -> Tensor:
    return mask.new_empty((mask.numel(), mask.ndim), dtype=torch.int64)


def _index(x: Tensor, indices: list[Tensor | None]) -> Tensor:
    """Indexing, where a mask chooses everything."""
    chosen: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            chosen.append(index)
        else:
            chosen += [torch.empty(index.numel(), dtype=torch.int64, device=DEVICE) for _ in index.shape]
    out: Tensor = aten.index.Tensor(x, chosen)
    return out


READS: dict[str, Callable[..., Any]] = {
    "_local_scalar_dense": _number,
    "nonzero": _all_true,
    "index": _index,
    "_unique2": lambda x, *options: (torch.ones(1, dtype=x.dtype), torch.zeros(0), torch.zeros(0)),
    "bincount": lambda x, weights=None, minlength=0: x.new_zeros(max(minlength, 1), dtype=torch.int64),
    "equal": lambda *tensors: True,
}
"""What cannot be said without values, and what is said instead."""
TO_CPU = ("_to_copy", "clone")
DRAWS = ("randn", "rand", "randint", "normal_", "uniform_")


class Accelerator(TorchFunctionMode):
    """Attention in one kernel, and autocast while `casting`."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0
        """How many casting contexts are open."""
        self.used = False
        """Whether one was ever open: then blocks that are recomputed in a backward pass are in one too."""
        self._kept: dict[int, Tensor] | None = None

    def __torch_function__(
        self, func: Any, types: tuple[type, ...], args: tuple[Any, ...] = (), kwargs: Kwargs | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if self.depth and func in LOW:
            args, kwargs = tuple(map(self._cast, args)), {key: self._cast(x) for key, x in kwargs.items()}
        return func(*args, **kwargs)

    @contextmanager
    def casting(self, *, keep: bool = True) -> Iterator[None]:
        """What torch's autocast to bf16 does inside; keep: the casts of trained weights live until it ends."""
        if not self.depth and keep:
            self._kept = {}
        self.depth, self.used = self.depth + 1, True
        try:
            yield
        finally:
            self.depth -= 1
            if not self.depth:
                self._kept = None

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Nothing is cast inside, whatever is open around it."""
        depth, self.depth = self.depth, 0
        try:
            yield
        finally:
            self.depth = depth

    def _cast(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype != torch.float32 or not x.is_meta:
            return x
        if self._kept is None or not (x.requires_grad and x.is_leaf):
            return x.to(torch.bfloat16)
        if id(x) not in self._kept:
            self._kept[id(x)] = x.to(torch.bfloat16)
        return self._kept[id(x)]


LOW = {functional.linear, functional.conv1d, functional.conv2d, functional.conv3d, torch.matmul, torch.bmm, torch.mm}
LOW |= {torch.baddbmm, torch.addmm, Tensor.matmul, Tensor.__matmul__}
"""What autocast computes in bf16 on CUDA, of what our networks call."""


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The memory of a fused kernel: output and one fp32 number a query, which the backward pass needs."""
    heads = query.shape[1] // key.shape[1]
    if heads > 1:  # fused kernels read shared heads where they are
        key, value = (x[:, :, None].expand(-1, -1, heads, -1, -1).flatten(1, 2) for x in (key, value))
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    out: Tensor = aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, with_gradient, dropout_p, is_causal, scale=scale
    )[0]
    return out


@contextmanager
def traced(*, last: bool = True) -> Iterator[LiveBytes]:
    """Inside, tensors on `DEVICE` are counted. Engines compute as on an accelerator. See `LiveBytes` for `last`."""
    accelerator, plain_autocast = Accelerator(), torch.autocast

    def autocast(dispatch: Dispatch) -> Any:
        return accelerator.casting() if dispatch.precision == "bf16" else ExitStack()

    def switched(kind: str, dtype: torch.dtype | None = None, enabled: bool = True, **options: Any) -> Any:
        """`torch.autocast`, which knows no meta device."""
        if kind != DEVICE.type:
            return plain_autocast(kind, dtype, enabled, **options)
        return accelerator.casting() if enabled else accelerator.exact()

    def backward(loss: Tensor) -> None:
        """As `Tensor.backward`, which would leave function modes out of what is computed again."""
        with accelerator.casting(keep=False) if accelerator.used else ExitStack():
            engine: Any = torch.autograd.Variable._execution_engine
            engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, accumulate_grad=True)

    def gradient(outputs: Tensor, inputs: Sequence[Tensor], seed: Tensor | None = None, **options: Any) -> Any:
        """As `torch.autograd.grad`, for the same reason."""
        graph, unused = options.get("create_graph", False), options.get("allow_unused", False)
        seeds = (torch.ones_like(outputs) if seed is None else seed,)
        engine: Any = torch.autograd.Variable._execution_engine
        inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        return engine.run_backward((outputs,), seeds, graph, graph, inputs, unused, accumulate_grad=False)

    devices = "torch.utils._foreach_utils._get_foreach_kernels_supported_devices"
    with ExitStack() as stack:
        for name, replacement in ((devices, lambda: ["meta"]), ("torch.accelerator.synchronize", lambda *_: None)):
            stack.enter_context(mock.patch(name, replacement))
        stack.enter_context(mock.patch.object(Dispatch, "autocast", autocast))
        stack.enter_context(mock.patch.object(torch, "autocast", switched))
        stack.enter_context(mock.patch.object(Tensor, "backward", backward))
        stack.enter_context(mock.patch.object(torch.autograd, "grad", gradient))
        live = stack.enter_context(LiveBytes(last=last))
        stack.enter_context(accelerator)
        yield live
