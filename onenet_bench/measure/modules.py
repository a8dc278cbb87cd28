"""Counting any ``nn.Module``: parameters and MACs of every submodule, by running it on tensors without memory."""

from __future__ import annotations

import contextlib
import copy
import importlib.machinery
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import ScriptObject, Tensor, nn
from torch.jit._script import RecursiveScriptModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from onenet_bench.budget import KEYS, Counted, Layer, total
from onenet_bench.errors import BudgetError

ROOT = "(root)"
"""The name of what belongs to no submodule."""

DEVICES = (("meta", "meta"), ("cpu", "meta"), ("cpu", "cpu"))
"""Where the module is built and where it runs: without memory if it can be, else as it would anyway."""

PRODUCTS = re.compile(
    r"(mm|mv|dot|dist)(_|$)|^addr_?$|matmul|conv(?!ert)|linear|rnn|gru|lstm|attention|transformer|solve|cholesky|"
    r"(?<!s)qr|^_?linalg_|^_fft_"
)
"""In the names of torch's operators that multiply and add; FlopCounterMode passes over those without a formula. …"""

NO_PRODUCTS = re.compile("upsample|reorder|flatten|check_errors")
"""… In those of operators that are named alike, but interpolate, lay weights out or look at errors."""

UNCOUNTABLE = re.compile("higher_order|HigherOrderOperator|__torch_dispatch__|NestedTensor")
"""In what torch raises where an operator runs, but not while it is counted."""

UNCOUNTABLE_WAY_OUT = (
    "; operators that take functions, such as scan and flex_attention, and nested tensors are not supported by the "
    "counting: count a net that has plain operators in their place"
)


def count_module(target: str, shape: tuple[int, ...], args: Mapping[str, Any], folder: Path) -> Counted:
    """Count the module that ``package.module:function`` returns, for one input of ``shape`` (without the batch).

    Imports look into ``folder`` first; a name that is taken already is refused. The module is put into evaluation mode
    and runs once, without gradients, on a batch of one of zeros. ``costs`` holds ``parameters`` and ``macs``; the
    layers are submodules by their path, each with what its children do not account for. Raises BudgetError where the
    function cannot be imported, raises, returns something else, or returns a module that cannot run on the shape.
    """
    with (
        _imports_from(folder),
        contextlib.chdir("."),  # foreign code may change the folder: relative paths are seen from this one
        contextlib.redirect_stdout(sys.stderr),  # stdout is the report's
    ):
        function = _import(target, folder.resolve())
        failures: list[BudgetError] = []
        for built_on, run_on in DEVICES:
            doing = "calling it"
            try:
                with torch.device(built_on):
                    net = function(**args)
                if not isinstance(net, nn.Module):
                    raise BudgetError(f"{target} must return an nn.Module, but returned {type(net).__name__}")
                if run_on == "cpu" and any(tensor.is_meta for tensor in _tensors(net)):  # kept from an earlier call
                    raise BudgetError(f"{failures[-1]}; return a new module from every call")
                doing = f"running its module on an input of {'x'.join(map(str, (1, *shape)))}"
                return _count((_emptied(net) if run_on == "meta" else net).eval(), shape, run_on)
            except BudgetError:
                raise
            except (Exception, SystemExit) as error:  # noqa: BLE001  (foreign code may raise anything)
                way_out = UNCOUNTABLE_WAY_OUT if UNCOUNTABLE.search(str(error)) else ""
                failure = BudgetError(
                    f"{target} must give a module that runs, but {doing} raised {_sentence(error)}{way_out}"
                )
                failure.__cause__ = error
                failures.append(failure)
        raise failures[-1]


@contextlib.contextmanager
def _imports_from(folder: Path) -> Iterator[None]:
    """Modules in ``folder`` can be imported. No bytecode of theirs is left behind: Python would take it for that of a
    file that is changed within the same second and keeps its length, and the change would pass unseen."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    wrote_none, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = wrote_none
        if entry in sys.path:
            sys.path.remove(entry)


def _import(target: str, folder: Path) -> Callable[..., object]:
    module_name, _, path = target.partition(":")
    if not all((*module_name.split("."), *path.split("."))):
        raise BudgetError(f"'net' is {KEYS['net']}, but got {target!r}")
    top = module_name.split(".")[0]
    try:
        importlib.import_module(top)
        _refuse_namesake(top, folder)
        found: Any = importlib.import_module(module_name)
    except BudgetError:
        raise
    except (Exception, SystemExit) as error:
        raise BudgetError(
            f"{module_name} must be importable, but importing it raised {_sentence(error)}; install it, or "
            "put it beside the budgets file"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise BudgetError(f"{module_name} must hold {path}, but has no {name!r}; write package.module:function")
        found = getattr(found, name)
    if isinstance(found, nn.Module) or not callable(found):
        raise BudgetError(
            f"{target} must be a function that returns an nn.Module, but is {type(found).__name__}; "
            "write a function around it"
        )
    return found  # type: ignore[no-any-return]


def _refuse_namesake(name: str, folder: Path) -> None:
    """Raise BudgetError where ``name`` is a file in ``folder``, but Python took another one: names that are loaded
    already are not looked for."""
    beside = importlib.machinery.PathFinder.find_spec(name, [str(folder)])
    taken = getattr(sys.modules[name], "__spec__", None)
    if beside and beside.origin and taken and Path(taken.origin or "").resolve() != Path(beside.origin).resolve():
        raise BudgetError(
            f"a module beside the budgets file has a name of its own, but {name} is loaded already ({taken.origin}), "
            f"in place of {beside.origin}; give that another name"
        )


def _tensors(net: nn.Module) -> Iterator[Tensor]:
    yield from net.parameters()
    yield from net.buffers()


def _emptied(net: nn.Module) -> nn.Module:
    """``net`` without memory: a copy of it where it has any, since whoever built it may keep it."""
    if all(tensor.is_meta for tensor in _tensors(net)):
        return net
    memo: dict[int, Any] = {}  # what stands in for the tensors, so that none is copied
    for tensor in _tensors(net):
        if type(tensor) is nn.Parameter:
            memo[id(tensor)] = nn.Parameter(tensor.data.to("meta"), tensor.requires_grad)
        elif type(tensor) is Tensor:
            memo[id(tensor)] = tensor.to("meta")
    return copy.deepcopy(net, memo).to("meta")


def _sentence(error: BaseException) -> str:
    """An error of foreign code on one line of bearable length."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}{'…' * (len(words) > 300)}" if words else type(error).__name__


class _Uncounted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes down the operators that ran and that may multiply and add without being counted: without a formula, and
    either named like a product or not torch's own."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "overloadpacket", func) not in flop_registry:
            namespace, _, name = func.name().split(".")[0].rpartition("::")
            is_product = PRODUCTS.search(name) and not NO_PRODUCTS.search(name)
            if namespace not in ("aten", "prim", "prims") or is_product:
                self.names.add(f"{namespace}::{name}".removeprefix("::"))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    """Nothing fused, so that the counter sees every product. (Under a dispatch mode torch compiles nothing.)"""
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", message="TF32 acceleration")  # torch's, whenever the next flag is set
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _packed(module: nn.Module, path: str) -> Iterator[Tensor]:
    """The weights that a quantised module packs. Raises BudgetError where weights cannot be seen."""
    held = vars(module)
    if isinstance(module, RecursiveScriptModule):
        if not module._c.hasattr("training"):
            raise BudgetError(
                f"parameters are counted, but those of {path} are constants since torch.jit.freeze; "
                "count the module before it is frozen"
            )
        held = {name: getattr(module, name) for name in module._concrete_type.get_attributes()}
    for name, value in held.items():
        if isinstance(value, ScriptObject):
            if not value._has_method("__getstate__"):  # type: ignore[attr-defined]
                raise BudgetError(
                    f"parameters are counted, but those of {path} in {name} cannot be seen ({value._type()}); "
                    "count the module without it"
                )
            yield from _unpacked(value)


def _unpacked(held: object) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, ScriptObject):
        yield from _unpacked(held.unpack() if hasattr(held, "unpack") else held.__getstate__())
    elif isinstance(held, list | tuple):
        for part in held:
            yield from _unpacked(part)


def _count(net: nn.Module, shape: tuple[int, ...], device: str) -> Counted:
    paths = {id(module): path or ROOT for path, module in net.named_modules()}
    macs = dict.fromkeys(paths.values(), 0)
    calls: list[tuple[int, list[int]]] = []  # of every open call: FLOPs before it, FLOPs of each call inside it
    counter, uncounted = FlopCounterMode(display=False), _Uncounted()

    def enter(module: nn.Module, inputs: Any) -> None:
        if id(module) in paths:  # not a copy, which carries the hooks too: its MACs are those of the module around it
            calls.append((counter.get_total_flops(), []))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if id(module) not in paths:
            return
        before, inner = calls.pop()
        spent = counter.get_total_flops() - before
        macs[paths[id(module)]] += (spent - sum(inner)) // 2  # two FLOPs per multiply-add
        if calls:
            calls[-1][1].append(spent)

    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
    with contextlib.ExitStack() as stack:
        for module in net.modules():
            if module is net or isinstance(module, RecursiveScriptModule):
                continue  # the latter takes no hooks: its MACs are its parent's
            stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        for context in (_unfused(), torch.no_grad(), torch.device(device), uncounted, counter):
            stack.enter_context(context)  # the counter innermost: it takes compound operators apart
        image: Tensor = torch.zeros(1, *shape, dtype=dtype)  # (B = 1, *shape)
        enter(net, image)
        leave(net, image, net(image))

    layers: dict[str, Layer] = {}
    known: dict[int, Tensor] = {}
    for path, module in net.named_modules():  # after the run: lazy modules have their weights now
        weights = (*module.parameters(recurse=False), *_packed(module, path or ROOT))
        own = {id(weight): weight for weight in weights if id(weight) not in known}
        known.update(own)
        layer = Layer(sum(weight.numel() for weight in own.values()), macs.get(path or ROOT, 0))
        if any(layer):
            layers[path or ROOT] = layer
    return Counted(costs=total(layers)._asdict(), layers=layers, uncounted=tuple(sorted(uncounted.names)))
