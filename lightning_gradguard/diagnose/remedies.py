"""What to try, in words; the benchmark applies each of them and reports how often it cures."""

from __future__ import annotations

UNFREEZE = "set requires_grad=True for it; if it is meant to be frozen, leave it out of the optimizer"
CONNECT = "look for detach(), no_grad(), .data, .item() or an unused output between this layer and the loss"
FLIP_SIGN = "minimize the loss, not its negative: check its sign, and maximize=True in the optimizer"
USE_SCALER = "scale the loss: precision='16-mixed' with its GradScaler, or bfloat16, which needs none"
USE_BFLOAT16 = "use bfloat16 (precision='bf16-mixed'), which has float32's range"
NORMALIZE_INPUT = "bring the input to zero mean and unit variance"
INIT_NORMAL = (
    "initialize for the activation: He for ReLU and its kin, Xavier for tanh and sigmoid; zero only for biases"
)
NORMALIZE = "add batch or layer normalization between the layers"
RESIDUAL = "add residual connections"
OTHER_ACTIVATION = "use a non-saturating activation: ReLU, GELU, SiLU"
LEAKY = "use an activation that does not die: leaky ReLU, GELU, SiLU"
ZERO_BIAS = "start the biases before the activation at zero"
LOWER_RATE = "lower the learning rate by the factor shown"
RAISE_RATE = "raise the learning rate by the factor shown"
WARM_UP = "warm the learning rate up over the first hundreds of steps"
RAISE_CEILING = "raise the clipping threshold to about the usual gradient norm, shown as evidence"
CLIP = "clip the total gradient norm at about its size before the growth, shown as evidence"
ORTHOGONAL = "initialize the recurrent weights orthogonally, with a spectral radius of one"
GATED = "use an LSTM or GRU, with the forget gate open at the start"
EVEN_RATES = "bring the two optimizers' learning rates together, so that their update ratios differ by less than ten"
LESS_TRAINING = "train the stronger side less often, or give it less capacity"


def for_scale(*, deep_and_bare: bool) -> tuple[str, ...]:
    """Returns what to try when the scale of weights is wrong: a deep net without any normalization needs that first."""
    return (NORMALIZE, INIT_NORMAL) if deep_and_bare else (INIT_NORMAL, NORMALIZE)
