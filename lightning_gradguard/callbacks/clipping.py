"""Tame: adaptive gradient clipping."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_gradguard.arguments import check_switch
from lightning_gradguard.callbacks.base import GradientCallback
from lightning_gradguard.callbacks.session import Plan
from lightning_gradguard.clip.base import ClipPolicy
from lightning_gradguard.clip.clipper import check_policies


class AdaptiveGradientClipping(GradientCallback):
    """Clips gradients by any policy, under automatic and manual optimization, for each optimizer on its own.

    Each optimizer has its own statistics, over its own parameters, kept in the checkpoint. Raw and clipped norm,
    threshold, coefficient and clip rate go to the Trainer's loggers.

    Args:
        policy: a policy such as ``ZClip()`` for all optimizers; or a mapping from optimizer index, or from the
            ``"name"`` of a parameter group, to a policy or ``None``. What the mapping leaves out is not clipped. The
            policy of a group that does not exist yet (one that is unfrozen later) waits for it.

        joint: whether the Trainer's optimizers are taken as one, because they step one model together (Muon for
            matrices, AdamW for the rest): one norm, one decision, one record; a bad gradient in one drops the steps of
            all. Not for a GAN, whose two pull against each other. It holds for all roles on a Trainer.
        dry_run: whether the policy decides and clips nothing: every bit of the run is that of an unwatched one, and
            records and loggers tell what it would have done. Beside ``Trainer(gradient_clip_val=...)``, too.

    Raises:
        TypeError, ValueError: for anything else than a policy.
        MisconfigurationException: when fit starts, if ``Trainer(gradient_clip_val=...)`` clips as well, or the
            mapping names an optimizer or parameter group that does not exist.

    Example:
        >>> from lightning_gradguard import AutoClip, NormClip, ZClip
        >>> clipping = AdaptiveGradientClipping(ZClip())
        >>> for_a_gan = AdaptiveGradientClipping({0: ZClip(), 1: AutoClip()})
        >>> to_see_what_it_would_do = AdaptiveGradientClipping(ZClip(), dry_run=True)
        >>> by_group = AdaptiveGradientClipping({"encoder": NormClip(1.0), "head": None})
    """

    def __init__(
        self, policy: ClipPolicy | Mapping[int | str, ClipPolicy | None], joint: bool = False, dry_run: bool = False
    ) -> None:
        check_policies(policy, "policy")
        self.policy = policy
        self.joint = joint
        self.dry_run = check_switch(dry_run, "dry_run")

    def _contribute(self, plan: Plan) -> None:
        plan.joint = plan.joint or self.joint
        plan.take("tame")
        plan.clip = self.policy
        plan.dry_run = self.dry_run
