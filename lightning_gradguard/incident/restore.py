"""Makes a freshly built module what it was at an incident: weights, buffers, modes, plain attributes."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_gradguard.incident.attributes import is_plain
from lightning_gradguard.incident.bundle import BundleError
from lightning_gradguard.incident.read import Bundle
from lightning_gradguard.measurement.layout import clean_name


def build_whole(module: nn.Module) -> None:
    """Calls ``configure_model`` of a LightningModule, as its Trainer had done, in one process.

    What would spread the module over processes (``fully_shard``, ``parallelize_module``) does nothing meanwhile, and
    its device mesh has one process in each direction.
    """
    configure = getattr(module, "configure_model", None)
    if not callable(configure) or not hasattr(module, "_device_mesh"):
        return
    kept = module.__dict__.get("_device_mesh")
    module.__dict__["_device_mesh"] = _OneProcess()
    try:
        with _nothing_is_sharded():
            configure()
    finally:
        module.__dict__["_device_mesh"] = kept


def load_state(bundle: Bundle, module: nn.Module) -> None:
    """Gives a module the weights, buffers, modes and frozen parameters of the incident, on the module's own device.

    Numbers and tensors among its attributes too, where the module has none of that name, or the run had changed it:
    hooks set them.

    Raises:
        BundleError: if names, shapes or kinds of numbers are not the same; the message lists them, and nothing is
            changed.
    """
    parameters = {clean_name(name): parameter for name, parameter in module.named_parameters()}
    buffers = {clean_name(name): buffer for name, buffer in module.named_buffers()}
    _check_fit(bundle, "parameter", bundle.state["parameters"], parameters)
    _check_fit(bundle, "buffer", bundle.state["buffers"], buffers)
    for saved, have in ((bundle.state["parameters"], parameters), (bundle.state["buffers"], buffers)):
        for name, tensor in have.items():
            if is_lazy(tensor):
                tensor.materialize(saved[name].shape)
            tensor.data = saved[name].to(tensor.device).clone()
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in bundle.state["frozen"])
        parameter.grad = None
    for name, part in module.named_modules():
        part.training = clean_name(name) not in bundle.state["eval"]
        _set_attributes(part, *bundle.state["attributes"].get(clean_name(name), ({}, ())))


def _set_attributes(part: nn.Module, saved: Mapping[str, Any], changed: Sequence[str]) -> None:
    """Sets what a fresh module lacks, and what the run had changed; never a method, a module or a weight."""
    for name, value in saved.items():
        mine = part.__dict__.get(name, getattr(type(part), name, None))
        registered = any(name in part.__dict__.get(kind, ()) for kind in ("_parameters", "_buffers", "_modules"))
        if registered or name[:1] == "_" or not is_plain(value) or not is_plain(mine):
            continue
        if name in changed or name not in part.__dict__:
            part.__dict__[name] = _on_device_of(part, value)


def _on_device_of(part: nn.Module, value: Any) -> Any:
    if isinstance(value, Tensor):
        device = next((parameter.device for parameter in part.parameters()), value.device)
        return value.to(device, copy=True)
    if type(value) in (list, tuple, deque):
        return type(value)(_on_device_of(part, item) for item in value)
    return {key: _on_device_of(part, item) for key, item in value.items()} if type(value) is dict else value


def _check_fit(bundle: Bundle, kind: str, saved: dict[str, Tensor], have: Mapping[str, Tensor]) -> None:
    problems = [f"{name} is not in the module" for name in saved.keys() - have.keys()]
    problems += [f"{name} is not in the bundle" for name in have.keys() - saved.keys()]
    for name in saved.keys() & have.keys():
        mine, theirs = have[name], saved[name]
        if theirs.layout != torch.strided or theirs.is_nested or theirs.device.type == "meta":
            problems.append(f"{name} is no dense tensor in the bundle")
        elif is_lazy(mine):
            continue
        elif mine.shape != theirs.shape:
            problems.append(f"{name} is {list(mine.shape)}, in the bundle {list(theirs.shape)}")
        elif (mine.is_floating_point(), mine.is_complex()) != (theirs.is_floating_point(), theirs.is_complex()):
            problems.append(f"{name} is {mine.dtype}, in the bundle {theirs.dtype}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        hint = "" if saved.keys() <= have.keys() else ". What setup() or another hook builds, let the factory build"
        raise BundleError(
            f"the module does not fit {bundle.path} (written for {bundle.report['module']}): "
            f"{kind} {'; '.join(sorted(problems)[:5])}{more}{hint}"
        )


class _OneProcess:
    """A device mesh of one process, in as many directions as it is asked for."""

    ndim = 1
    mesh_dim_names: tuple[str, ...] = ()
    device_type = "cpu"

    def __getitem__(self, name: Any) -> _OneProcess:
        return self

    def size(self, mesh_dim: int | None = None) -> int:
        """One."""
        return 1

    def get_local_rank(self, mesh_dim: Any = None) -> int:
        """Returns the first, and only one."""
        return 0

    get_rank = get_local_rank


@contextlib.contextmanager
def _nothing_is_sharded() -> Iterator[None]:
    """Within it torch's functions that spread a module over processes give the module back as it is.

    They stand in every module that imported them by name, so all modules are looked through.
    """
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    for function in list(_sharding_functions()):
        for namespace in [vars(module) for module in list(sys.modules.values()) if hasattr(module, "__dict__")]:
            for name in [name for name, value in list(namespace.items()) if value is function]:
                replaced.append((namespace, name, function))
                namespace[name] = _as_it_is
    try:
        yield
    finally:
        for namespace, name, function in replaced:
            namespace[name] = function


def _as_it_is(module: Any, *args: Any, **kwargs: Any) -> Any:
    return module


def _sharding_functions() -> Iterator[Callable[..., Any]]:
    for module, names in (
        ("torch.distributed.fsdp", ("fully_shard", "FullyShardedDataParallel")),
        ("torch.distributed._composable.fsdp", ("fully_shard",)),
        ("torch.distributed._composable.replicate", ("replicate",)),
        ("torch.distributed.tensor.parallel", ("parallelize_module",)),
    ):
        loaded = sys.modules.get(module)
        for name in names:
            found = getattr(loaded, name, None)
            if inspect.isfunction(found) or inspect.isclass(found):
                yield found
