"""The processes that train one model together, and how they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_gradguard.measurement.sharding import is_distributed, local, num_processes


class Together:
    """The processes that share the parameters of a model; this one alone where nobody shares them.

    Processes of one group may as well train a model each (a sweep, an ensemble): then nobody waits for another.
    Several share one where a wrapper of it says so (DDP, FSDP), or its parameters are pieces (``DTensor``). Every
    method that is a collective says so: each process has to call it, in the same order.

    Args:
        module: the outermost wrapper, or the plain module.
        told: whether it is known that the module shows it.

    Attributes:
        several: whether there are others.
        certain: whether that is known: a loop that all-reduces by hand, or hides DDP's wrapper, shows nothing.

    Example:
        >>> alone = Together(nn.Linear(2, 1))
        >>> alone.several, alone.any(True, [])
        (False, True)
    """

    def __init__(self, module: nn.Module, *, told: bool = False) -> None:
        self._ddp: list[DistributedDataParallel] = []
        self.several = False
        if num_processes() > 1:
            self._ddp = [part for part in module.modules() if isinstance(part, DistributedDataParallel)]
            flat = any(hasattr(part, "_fsdp_wrapped_module") for part in module.modules())
            self.several = bool(self._ddp) or flat or any(map(is_distributed, module.parameters()))
        self.certain = told or self.several or num_processes() == 1

    def any(self, flag: bool, params: Sequence[Tensor]) -> bool:
        """Tells whether a flag is set on any process: a collective.

        Args:
            flag: of this process.
            params: where they live, flags are compared.
        """
        if not self.several:
            return flag
        # Votes lie where the parameters do: NCCL knows no tensors of the CPU.
        votes = torch.tensor(float(flag), dtype=torch.float32, device=local(params[0]).device if params else None)
        self._refuse_join()
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return bool(votes)

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the means of numbers over the processes: a collective, one for all of them."""
        if not self.several:
            return dict(values)
        self._refuse_join()
        together = torch.stack(list(values.values())) / num_processes()
        dist.all_reduce(together)
        return dict(zip(values, together.unbind(), strict=True))

    def leave(self) -> None:
        """Ends all waiting: an error of this process ends its run, and the others may be anywhere in their step."""
        self.several = False

    def _refuse_join(self) -> None:
        """Refuses to wait for processes that may have left the loop already, where torch shadows DDP's waits alone."""
        if any(ddp._join_config.enable for ddp in self._ddp):
            raise RuntimeError(
                "a guard needs every process at every step, to agree about buffers and incidents, and inside of "
                "torch.distributed's Join those with fewer batches leave early: the others would wait for ever. Leave "
                "out the guard (clipping works inside of Join), or give each process as many batches"
            )
