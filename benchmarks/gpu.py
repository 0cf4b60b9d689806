"""The same on a GPU: time, host syncs, and how far from the memory's speed.

    python -m benchmarks.gpu [--models gpt2 1b] [--repeats 50] [--device cuda]

Each variant works on the same gradients, by turns. Time is between CUDA events around the call; the floor is the bytes
of the gradients over the copy bandwidth measured in the same process. Syncs are counted by CUDA's own sync debug mode
in a quiet step. ``--device cpu --models tiny`` tries the script where there is no GPU, and measures nothing of use.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from benchmarks import machine
from benchmarks.workloads import Gpt
from lightning_gradguard import AGC, AutoClip, ClipPolicy, GradientPipeline, NormClip, ValueClip, ZClip

NEVER = 10**9
CLIPPING = "`clip_grad_norm_`"
MODELS: dict[str, tuple[str, dict[str, int], torch.dtype]] = {
    "gpt2": ("GPT-2 small, float32", {}, torch.float32),
    "1b": ("GPT of 1.1 B parameters, bfloat16", {"width": 2048, "depth": 20, "heads": 16}, torch.bfloat16),
    "tiny": ("a tiny GPT, float32", {"width": 32, "depth": 2, "heads": 2, "vocabulary": 100}, torch.float32),
}
FUSED = "everything on, fused optimizer, nothing to clip"
# Host syncs that a quiet step may have: a guard must know before the optimizer steps, unless that is a fused one.
ALLOWED = {"guard": 1, "everything on, nothing to clip": 1, "everything on, every step clipped": 1}


def with_gradients(options: dict[str, int], dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A network that carries gradients; nothing is trained."""
    with device:
        net = Gpt(**options).to(dtype)
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter).mul_(1e-3)
    return net


def all_variants(net: nn.Module) -> dict[str, Callable[[], object]]:
    """What is compared, by name: functions of the gradients."""
    high, low = ZClip(z=1e6), ZClip(max_norm=1e-9)
    policies: dict[str, tuple[ClipPolicy | None, bool]] = {
        "watching": (None, False),
        "watching and ZClip": (high, False),
        "watching and NormClip": (NormClip(1.0), False),
        "watching and AutoClip": (AutoClip(), False),
        "watching and ValueClip": (ValueClip(1.0), False),
        "watching and AGC": (AGC(), False),
        "guard": (None, True),
        "everything on, nothing to clip": (high, True),
        "everything on, every step clipped": (low, True),
        FUSED: (high, True),
    }
    parameters = list(net.parameters())
    found: dict[str, Callable[[], object]] = {CLIPPING: lambda: clip_grad_norm_(parameters, 1.0)}
    for name, (clip, guard) in policies.items():
        optimizer = torch.optim.SGD(parameters, lr=0.1, fused=name == FUSED)
        pipeline = GradientPipeline(
            net, optimizer, clip=clip, on_nonfinite="skip" if guard else None, log_every_n_steps=NEVER
        )
        found[name] = lambda pipeline=pipeline: pipeline.before_step()  # type: ignore[misc]
    return found


def milliseconds(function: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Time on the device, and CPU time of the call that launches it."""
    if device.type != "cuda":
        start = time.process_time()
        function()
        return (1e3 * (time.process_time() - start),) * 2
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    cpu = time.thread_time()
    first.record()
    function()
    last.record()
    cpu = time.thread_time() - cpu
    torch.cuda.synchronize(device)
    return first.elapsed_time(last), 1e3 * cpu


def count_syncs(function: Callable[[], object], device: torch.device) -> int:
    """Host syncs of one call, as CUDA's sync debug mode sees them."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def runs_without_sync(function: Callable[[], object], device: torch.device) -> None:
    """Raises if the call syncs with the host.

    Raises:
        RuntimeError: from CUDA's sync debug mode; its traceback leads to the place.
    """
    if device.type != "cuda":
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        function()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def copy_bandwidth(device: torch.device) -> float:
    """Bytes that a copy moves in a second, read and written."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**22, device=device)
    target = torch.empty_like(source)
    spent = [milliseconds(lambda: target.copy_(source), device)[0] for _ in range(20)]
    return 2 * source.nbytes / (machine.median_and_spread(spent[5:])[0] / 1e3)


def measure(name: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """All figures of one model."""
    title, options, dtype = MODELS[name]
    net = with_gradients(options, dtype, device)
    functions = all_variants(net)
    for _ in range(3):
        for function in functions.values():
            function()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(repeats):
        for variant, function in functions.items():
            times[variant].append(milliseconds(function, device))
    syncs = {variant: count_syncs(function, device) for variant, function in functions.items()}
    for variant, function in functions.items():
        if not ALLOWED.get(variant):
            runs_without_sync(function, device)
    num_bytes = sum(parameter.grad.nbytes for parameter in net.parameters() if parameter.grad is not None)
    return {
        "title": title,
        "tensors": len(list(net.parameters())),
        "gradient_bytes": num_bytes,
        "floor_ms": 1e3 * num_bytes / copy_bandwidth(device),
        "variants": {
            variant: {
                "device_ms": machine.median_and_spread([device_ms for device_ms, _ in values]),
                "cpu_ms": machine.median_and_spread([cpu_ms for _, cpu_ms in values]),
                "syncs": syncs[variant],
            }
            for variant, values in times.items()
        },
    }


def page(results: dict[str, Any]) -> str:
    """All figures as Markdown."""
    parts = ["# On a GPU", f"{machine.in_words(results['machine'])} Device: {results['device']}."]
    for model in results["models"].values():
        clipping, floor = model["variants"][CLIPPING]["device_ms"][0], model["floor_ms"]
        rows = []
        for name, found in model["variants"].items():
            middle, low, high = found["device_ms"]
            each = (f"{middle:.3f} [{low:.3f}, {high:.3f}]", f"{middle / clipping:.2f}", f"{middle / floor:.1f}")
            rows.append([name, *each, f"{found['cpu_ms'][0]:.2f}", str(found["syncs"])])
        header = ["a quiet step", "ms on the device", "x clipping", "x floor", "ms of CPU to launch", "host syncs"]
        size = f"{model['tensors']} tensors, {model['gradient_bytes'] / 1e9:.2f} GB of gradients, floor {floor:.3f} ms"
        parts.append(f"## {model['title']}: {size}\n\n{machine.markdown_table(header, rows)}")
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["gpt2", "1b"])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--device", default="cuda")
    machine.add_record_option(parser, "gpu")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; try the script with --device cpu --models tiny")
    results: dict[str, Any] = {
        "machine": machine.describe(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "none: CPU",
        "models": {name: measure(name, options.repeats, device) for name in options.models},
    }
    text = page(results)
    machine.save(options.name, results, text, record=options.record)
    print(text)


if __name__ == "__main__":
    main()
