"""What to try, in words; the benchmark applies each of them and reports how often it cures.

Each begins with a constant of this module; numbers and names come behind it.
"""

from __future__ import annotations

import math

STRAIGHT_THROUGH = "pass the gradient straight through what has none: x + (q - x).detach() in place of q"
UNFREEZE = "set requires_grad=True for it; if it is meant to be frozen, leave it out of the optimizer"
CONNECT = "look for detach(), no_grad(), .data, .item() or an unused output between this layer and the loss"
OWN_PARAMETERS = (
    "give the optimizer the parameters of this module: build it in configure_optimizers, of self.parameters()"
)
REGISTER = "keep modules in an nn.ModuleList or nn.ModuleDict, and tensors as nn.Parameter or in an nn.ParameterList"
FLIP_SIGN = "minimize the loss, not its negative: check its sign, and maximize=True in the optimizer"
LESS_OVERLAP = "minimize one less the overlap, or its negative: check the sign of the loss"
EACH_SIGN = (
    "look at the sign of each term of the loss and at what it is given: one of them is maximized, or wants "
    "log-probabilities and gets raw outputs"
)
TARGETS_IN_RANGE = "bring the targets of this loss into 0 to 1: masks of 0 and 255 want a division by 255"
ZERO_GRAD = "call optimizer.zero_grad() before each backward pass that begins a step"
ZERO_GRAD_FIRST = "call optimizer.zero_grad() before backward(), not between backward() and step()"
CALL_STEP = "call optimizer.step() after the backward pass"
SET_RATE = "give the optimizer a learning rate above zero; look at what the scheduler makes of it"
SLOWER_DECAY = "let the learning rate decay over the whole run: schedulers count in steps or epochs, check `interval`"
LOWER_DECAY = "lower the weight decay"
WEIGH_LESS = (
    "give the other terms of the loss, penalty or divergence, a tenth of their weight or less, or let it grow slowly"
)
LOWER_MOMENTUM = "lower the momentum"
USE_SCALER = "scale the loss: precision='16-mixed' with its GradScaler, or bfloat16, which needs none"
USE_BFLOAT16 = "use bfloat16 (precision='bf16-mixed'), which has float32's range"
NORMALIZE_INPUT = "bring the input to zero mean and unit variance"
NORMALIZE_TARGET = "bring the targets to zero mean and unit variance, and scale predictions back"
NORMALIZE_BOTH = f"{NORMALIZE_INPUT}, and the targets too, and scale predictions back"
VARY_INPUT = "look at what the data loader yields: the input carries nothing"
INIT_NORMAL = (
    "initialize for the activation: He for ReLU and its kin, Xavier for tanh and sigmoid; zero only for biases"
)
AS_DRAWN = (
    "leave these weights as torch draws them, which reset_parameters() of each layer does anew, or draw them at random "
    "for the activation"
)
FROM_ZERO = "draw these weights at random: of factors that are multiplied, one at most may begin at zero"
ONE_FROM_ZERO = "draw one of the two factors at random, and leave the other at zero: the net then begins as it was"
SCALES_FROM_ZERO = "begin these scales at 0.1: at exactly zero neither they nor what they scale get a gradient"
SMALLER_WEIGHTS = "begin with smaller weights"
SMALLER_LOGITS = "divide what goes into the loss"
LARGER_LOSS = "multiply the loss"
NORMALIZE = "add batch or layer normalization between the layers"
NORMALIZE_AND_INIT = f"{NORMALIZE}, and {INIT_NORMAL}"
RESIDUAL = "add residual connections"
OTHER_ACTIVATION = "use a non-saturating activation: ReLU, GELU, SiLU"
LEAKY = "use an activation that does not die: leaky ReLU, GELU, SiLU"
ZERO_BIAS = "start the biases before the activation at zero"
MOMENTUM = "give these layers a momentum of 0.1, torch's own: it is the share that each batch gets"
TRAINING_MODE = "call train() on these layers before training; the Trainer leaves modes as it finds them"
RUN_ITSELF = "call the module itself, or bring the statistics of its copy back"
PASS_LOGITS = "pass the raw outputs to this loss: it applies softmax or sigmoid itself"
PASS_LOG_PROBABILITIES = "use cross_entropy in place of nll_loss, or pass it log_softmax of the raw outputs"
ONE_OUTPUT = "give cross_entropy an output for each class, or take binary_cross_entropy_with_logits for a single one"
PASS_LOG_SOFTMAX = "pass kl_div log_softmax of the raw outputs first, and the targets second"
PASS_LOGARITHMS = "pass kl_div log_softmax in place of softmax"
PASS_PROBABILITIES = "pass this loss the sigmoid or softmax of the raw outputs"
TARGETS_OF_DIVERGENCE = "pass kl_div softmax of the raw targets, or their log_softmax together with log_target=True"
OPEN_OUTPUT = "leave the last activation out, or bring the targets into its range"
SCALE_LOGITS = "divide attention logits by the square root of the head's width, normalize queries and keys"
LOWER_RATE = "lower the learning rate"
RAISE_RATE = "raise the learning rate"
WHAT_GROWS = (
    "look at each term of the loss and at its targets: steps are of usual size, so that something makes the loss grow, "
    "as targets do that the net itself puts out"
)
BOUND_CRITIC = (
    "bound the critic, if one of the two is one: a gradient penalty, spectral normalization or clipped weights"
)
WARM_UP = "warm the learning rate up over the first hundreds of steps"
RAISE_CEILING = "raise the clipping threshold"
CLIP = "clip the total gradient norm"
ORTHOGONAL = "initialize the recurrent weights orthogonally, with a spectral radius of one"
GATED = "use an LSTM or GRU, with the forget gate open at the start"
EVEN_RATES = "bring the two optimizers' learning rates together, so that their update ratios differ by less than ten"
LESS_TRAINING = "train the stronger side less often, or give it less capacity"
BALANCE = (
    "weigh the losses so that each part gets a gradient of like size; for experts, balance how often they are chosen"
)
LOOK_AT_BATCH = "look at the data of the bad batch"
REPLAY = "replay the saved step and see where it began"
SAVE_INCIDENT = "save the next bad step with incident_dir=..., then `python -m lightning_gradguard replay BUNDLE`"


def for_scale(*, deep_and_bare: bool, normalizes: bool = False) -> tuple[str, ...]:
    """What to try when the scale of weights is wrong: a deep net without any normalization needs both at once.

    In ten convolutions with sigmoids or wild weights neither of the two cures by itself, and both together do. A net
    that normalizes already is not told to.
    """
    if normalizes:
        return (INIT_NORMAL,)
    return (NORMALIZE_AND_INIT,) if deep_and_bare else (INIT_NORMAL, NORMALIZE)


def smaller_logits(factor: float) -> str:
    """Bringing outputs into the range where a loss is unsure, by a factor."""
    return f"{SMALLER_LOGITS} by about {factor:g}, or begin with smaller weights in the last layer"


def smaller_weights(factor: float) -> str:
    """Scaling initial weights down, by what the gradient grows from layer to layer."""
    return (
        f"{SMALLER_WEIGHTS}, about {factor:.2g} times in each layer: by as much the gradient grows from one to the next"
    )


def lower_rate(factor: float | None = None) -> str:
    """Lowering the learning rate, by about a factor where it is known.

    Example:
        >>> lower_rate(30)
        'lower the learning rate by about 30×'
    """
    return LOWER_RATE if factor is None or not math.isfinite(factor) else f"{LOWER_RATE} by about {factor:g}×"


def raise_rate(factor: float) -> str:
    """Raising the learning rate, by about a factor."""
    return RAISE_RATE if not math.isfinite(factor) else f"{RAISE_RATE} by about {factor:g}×"


def larger_loss(factor: float, why: str) -> str:
    """Multiplying the loss, whose gradient is too small."""
    return f"{LARGER_LOSS} by about {factor:.2g}: {why}"


def clip(norm: float | None = None, *, clips: bool = False) -> str:
    """Clipping at a norm; where a policy is at work already, lowering its ceiling."""
    at = f" at about {norm:.2g}" if norm is not None and math.isfinite(norm) else ""
    return f"lower the clipping threshold: clip{at}" if clips else f"{CLIP}{at}"


def raise_ceiling(norm: float) -> str:
    """Raising the clipping threshold to where only outliers are clipped, given the usual norm.

    Example:
        >>> raise_ceiling(0.024)
        'raise the clipping threshold to about 0.24, ten times the usual gradient norm'
    """
    return f"{RAISE_CEILING} to about {10 * norm:.2g}, ten times the usual gradient norm"
