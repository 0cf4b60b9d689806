"""What can be wrong with a run, and which rule says so.

One place for the judgement "the right cause": a rule that is added or renamed is entered here. What stands first names
the cause itself; the others describe it so that a user would look in the right place.
"""

from __future__ import annotations

CAUSES: dict[str, tuple[str, ...]] = {
    "optimizer holds other parameters": ("no-step", "not-in-optimizer", "no-gradient"),
    "step is never called": ("no-step",),
    "parameters in no optimizer": ("not-in-optimizer", "no-gradient"),
    "frozen by mistake": ("no-gradient", "frozen"),
    "graph is cut": ("no-gradient",),
    "a part starves": ("starving-part", "vanishing-over-depth", "no-gradient"),
    "gradients are never cleared": ("no-zero-grad",),
    "loss is maximized": ("wrong-sign", "loss-rises"),
    "loss has no floor": ("wrong-sign", "loss-rises"),
    "rate is zero": ("rate-zero", "updates-too-small"),
    "rate too low": ("updates-too-small",),
    "rate too high": ("updates-too-large",),
    "rate decays too early": ("rate-decayed", "updates-too-small"),
    "clipping rules": ("clipping-always",),
    "weight decay rules": ("weight-decay",),
    "optimizers are out of balance": ("optimizer-imbalance", "critic-won"),
    "input too large": ("input-scale",),
    "input too small": ("input-scale",),
    "input is constant": ("input-scale", "input-constant"),
    "inputs differ in scale": ("input-scale",),
    "targets too large": ("target-scale",),
    "weights begin too large": ("poor-initialization", "output-scale", "exploding-over-depth", "saturated-activations"),
    "weights begin too small": ("poor-initialization", "vanishing-over-depth"),
    "weights begin at zero": ("poor-initialization", "zero-gradient"),
    "units are identical": ("identical-units", "poor-initialization"),
    "units are dead": ("dead-units",),
    "activations are saturated": ("saturated-activations",),
    "attention is saturated": ("saturated-attention", "poor-initialization"),
    "output is saturated": ("saturated-output", "saturated-activations"),
    "output activation and loss do not fit": ("double-activation", "saturated-output"),
    "gradient vanishes over depth": ("vanishing-over-depth", "poor-initialization"),
    "signal explodes over depth": ("exploding-over-depth", "poor-initialization"),
    "gradient vanishes over time": ("vanishing-over-time",),
    "gradient explodes over time": ("exploding-over-time",),
    "float16 underflows": ("fp16-underflow",),
    "float16 overflows": ("fp16-headroom", "loss-scale-collapse"),
    "a step is not finite": ("bad-batches",),
    "batches are bad": ("bad-batches",),
    "posterior has collapsed": ("posterior-collapse",),
    "loss is badly scaled": ("output-scale", "updates-too-large", "runaway-over-time"),
    "labels are wrong": (),
    "loss broadcasts": (),
    "too much regularization": ("regularization",),
}
