"""What one step costs in figures that do not depend on the machine: counted, not timed.

    python -m benchmarks.counted [--name counted]

Operator calls, host reads, passes over the gradients and memory taken, for a quiet step of each variant on 100 tensors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import machine, peers
from lightning_gradguard import (
    AGC,
    AdaGC,
    AutoClip,
    GradientPipeline,
    MemorySink,
    NormClip,
    ValueClip,
    ZClip,
)
from lightning_gradguard.clip.answer import as_on_a_device
from lightning_gradguard.clip.clipper import Policies

_HOST_READS = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero")
_WHOLE_HOST_READS = (Tensor.tolist, Tensor.numpy, Tensor.cpu)  # on CPU these are no operators
_FROM_HOST = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy)
_MOVES = ("_to_copy", "copy_")
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)


@dataclass
class Count:
    """What a step did.

    Attributes:
        calls: operators called, views included.
        host_reads: times a value went from tensor to Python: a sync on an accelerator.
        reads: elements of gradients read, over the number there are.
        writes: elements of gradients written, likewise.
        taken: bytes of new tensors, over those of the gradients.
        host_copies: times Python values were put into a tensor: a copy to an accelerator, which the host waits for.
    """

    calls: int = 0
    host_reads: int = 0
    reads: float = 0.0
    writes: float = 0.0
    taken: float = 0.0
    host_copies: int = 0


class _HostTraffic(TorchFunctionMode):
    """Counts what crosses between host and device, as far as the dispatcher does not see it on CPU."""

    def __init__(self, count: Count) -> None:
        self._count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._count.host_reads += func in _WHOLE_HOST_READS
        self._count.host_copies += _copies_from_host(func, args)
        return func(*args, **(kwargs or {}))


def _copies_from_host(func: Any, args: Sequence[Any]) -> bool:
    if func in _INDEXING:  # by a list, which becomes a tensor
        return any(isinstance(part, list) for part in (args[1] if isinstance(args[1], tuple) else (args[1],)))
    return func is Tensor.new_tensor or (func in _FROM_HOST and not isinstance(args[0], Tensor))


def _leaves_the_host(values: Sequence[Any]) -> bool:
    devices = {tensor.device.type for tensor in _tensors(list(values))}
    return "cpu" in devices and len(devices) > 1


class Counter(TorchDispatchMode):
    """Counts what is done while it is active, to the gradients of some parameters."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self._storages = {_storage(grad) for grad in grads}
        self._elements = sum(grad.numel() for grad in grads)
        self._bytes = sum(grad.nbytes for grad in grads)
        self.count = Count()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count.calls += 1
        name = func._schema.name.split("::")[1]
        self.count.host_reads += name in _HOST_READS
        self.count.host_copies += name in _MOVES and _leaves_the_host([*args, result])
        if any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
            return result  # a view moves nothing
        for value, argument in zip(args, func._schema.arguments, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            for tensor in _tensors(value):
                if _storage(tensor) in self._storages:
                    self.count.reads += tensor.numel() / self._elements
                    self.count.writes += tensor.numel() / self._elements if written else 0.0
        known = {_storage(tensor) for tensor in _tensors([*args, *(kwargs or {}).values()])}
        self.count.taken += sum(t.nbytes for t in _tensors(result) if _storage(t) not in known) / self._bytes
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def network(num_layers: int = 50) -> nn.Module:
    """Layers of three sizes: stacked, one by one, and cut into rows; two tensors each."""
    sizes = [(16, 16), (70, 70), (128, 128)]
    return nn.ModuleList([nn.Linear(*sizes[min(index % 10, 2)]) for index in range(num_layers)])


def count_step(
    clip: Policies | None,
    *,
    guard: bool,
    log: bool = False,
    factor: float = 1e-3,
    device: str = "cpu",
    arithmetic: Callable[[], AbstractContextManager[None]] = as_on_a_device,
) -> Count:
    """Counts the third step of a pipeline: the first ones plan and start.

    Args:
        clip: the policy, or one for each of the parameter groups ``"even"`` and ``"odd"``.
        guard: whether to skip what is not finite.
        log: whether the step makes a record.
        factor: of normally distributed gradients.
        device: of the network; ``"meta"`` stands for one that is not the host, without values.
        arithmetic: of policies: as on a device, or ``nullcontext`` for that of the CPU.
    """
    with arithmetic():
        return _count_step(clip, guard=guard, log=log, factor=factor, device=device)


def _count_step(clip: Policies | None, *, guard: bool, log: bool, factor: float, device: str) -> Count:
    torch.manual_seed(0)
    net = network().to(device)
    parameters = list(net.parameters())
    groups = [{"params": parameters[start::2], "name": name} for start, name in enumerate(("even", "odd"))]
    optimizer = torch.optim.SGD(groups if isinstance(clip, Mapping) else parameters, lr=0.1)
    pipeline = GradientPipeline(
        net, optimizer, clip=clip, on_nonfinite="skip" if guard else None, sinks=[MemorySink()], log_every_n_steps=10**9
    )
    for _ in range(2):
        _give_gradients(net, factor)
        pipeline.before_step()
    return count(net, lambda: pipeline.before_step(log=log), factor)


def count(net: nn.Module, step: Callable[[], object], factor: float = 1e-3) -> Count:
    """Counts what a function does to fresh gradients."""
    _give_gradients(net, factor)
    counter = Counter(list(net.parameters()))
    with counter, _HostTraffic(counter.count):
        step()
    return counter.count


def _give_gradients(net: nn.Module, factor: float) -> None:
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter) * factor


def variants(
    arithmetic: Callable[[], AbstractContextManager[None]] = as_on_a_device,
) -> dict[str, Callable[[], Count]]:
    """All that is in the table, with the arithmetic of a device or ``nullcontext`` for that of the CPU."""
    high, low = ZClip(z=1e6), ZClip(max_norm=1e-9)
    found: dict[str, Callable[[], Count]] = {
        "`clip_grad_norm_`": lambda: _count_function(torch.nn.utils.clip_grad_norm_, 1.0),
        "watching": lambda: count_step(None, guard=False, arithmetic=arithmetic),
        "guard": lambda: count_step(None, guard=True, arithmetic=arithmetic),
        "everything on, nothing to clip": lambda: count_step(high, guard=True, arithmetic=arithmetic),
        "everything on, clipped": lambda: count_step(low, guard=True, arithmetic=arithmetic),
        "everything on, a record is made": lambda: count_step(high, guard=True, log=True, arithmetic=arithmetic),
    }
    policies: dict[str, Policies] = {
        "NormClip": NormClip(1e6),
        "ValueClip": ValueClip(1e6),
        'ZClip by="value"': ZClip(z=1e6, by="value"),
        "AutoClip": AutoClip(),
        "AGC, unit by unit": AGC(),
        "AdaGC": AdaGC(),
        "ZClip for each of two parameter groups": {"even": ZClip(), "odd": ZClip()},
    }
    for name, policy in policies.items():
        found[f"guard and {name}"] = lambda policy=policy: count_step(policy, guard=True, arithmetic=arithmetic)  # type: ignore[misc]
    agc = peers.timm_agc()
    if agc is not None:
        found["timm's adaptive_clip_grad"] = lambda: _count_function(agc)
    return found


def _count_function(function: Callable[..., object], *arguments: Any) -> Count:
    net = network()
    return count(net, lambda: function(list(net.parameters()), *arguments))


def page(counts: dict[str, Count], on_cpu: dict[str, Count], described: dict[str, Any]) -> str:
    """The table as Markdown."""
    rows = []
    for name, c in counts.items():
        host = [str(number) for number in (c.calls, on_cpu[name].calls, c.host_reads, c.host_copies)]
        rows.append([name, *host, f"{c.reads:.2f}", f"{c.writes:.2f}", f"{c.taken:.3f}"])
    operators = ["operator calls", "on the CPU", "host reads", "copies to device"]
    header = ["a step on 100 tensors", *operators, "passes: read", "written", "memory taken"]
    note = (
        "Passes and memory as multiples of the gradients. A host read is a sync on an accelerator; a copy to the\n"
        "device is one of values that Python holds. On the CPU policies over single numbers calculate with Python's\n"
        "floats; all other columns are as on a device, except that watching reads one number on the CPU alone, where\n"
        "that waits for nobody."
    )
    table = machine.markdown_table(header, rows)
    return "\n\n".join(["# What a step costs, counted", machine.in_words(described), note, table])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    machine.add_record_option(parser, "counted")
    options = parser.parse_args(argv)
    described = machine.describe()
    counts = {name: run() for name, run in variants().items()}
    on_cpu = {name: run() for name, run in variants(nullcontext).items()}
    text = page(counts, on_cpu, described)
    figures = {k: {**asdict(c), "calls_on_cpu": on_cpu[k].calls} for k, c in counts.items()}
    machine.save(
        options.name,
        {"machine": described, "counts": figures},
        text,
        record=options.record,
    )
    print(text)


if __name__ == "__main__":
    main()
