"""The names that the user gave modules and parameters, whatever wraps them."""

from __future__ import annotations

from torch import Tensor, nn

# What wrappers call the module that they wrap; none of it is the user's.
_WRAPPER_PARTS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_original_module"}
)
# Wrappers that call it by a word that users use as well.
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def clean_name(name: str) -> str:
    """Returns the name the user gave a parameter, without what ``torch.compile``, FSDP or Fabric put in front.

    Where a module is at hand, :func:`module_names` knows more: the ``module.`` of DDP can be told from a user's own.

    Example:
        >>> clean_name("net._orig_mod.0.weight")
        'net.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)


def module_names(module: nn.Module) -> dict[nn.Module, str]:
    """Every module below this one, itself included, with the name that the user gave it, in the order of definition.

    A wrapper (compiled, DDP, FSDP, Fabric's, activation checkpointing, at any depth and in any order) has the name of
    what it wraps. A module that hangs at two places has the first.

    Example:
        >>> import torch
        >>> net = nn.Sequential(torch.compile(nn.Linear(2, 2)), nn.ReLU())
        >>> list(module_names(nn.DataParallel(net)).values())
        ['', '', '0', '0', '1']
    """
    names: dict[nn.Module, str] = {}

    def walk(part: nn.Module, name: str) -> None:
        if part in names:
            return
        names[part] = name
        for key, child in part._modules.items():
            if child is not None:
                wrapped = key in _WRAPPER_PARTS or (key == "module" and isinstance(part, _WRAPPERS))
                walk(child, name if wrapped else join(name, key))

    walk(module, "")
    return names


def tensor_names(module: nn.Module, kind: str) -> dict[Tensor, str]:
    """Every parameter or buffer of a module with the name that the user gave it; a tied one under its first.

    Args:
        module: wrapped or not.
        kind: ``"_parameters"`` or ``"_buffers"``.
    """
    names: dict[Tensor, str] = {}
    for part, name in module_names(module).items():
        for key, tensor in getattr(part, kind).items():
            if tensor is not None:
                names.setdefault(tensor, join(name, key))
    return names


def join(name: str, key: str) -> str:
    """``key`` below ``name``, which is empty for the root."""
    return f"{name}.{key}" if name else key
