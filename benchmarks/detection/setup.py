"""One training run as a set of choices; a fault changes one of them, a remedy changes one back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Architecture = Literal["mlp", "cnn", "rescnn", "lstm", "gru", "rnn", "transformer", "gan", "autoencoder", "other"]


@dataclass(frozen=True)
class Setup:
    """What a practitioner chooses. The defaults of each architecture (``cases.py``) train well."""

    arch: Architecture
    steps: int = 120
    depth: int = 8
    width: int = 32
    activation: str = "relu"
    init: str = "he"  # he | xavier | default | normal | zero
    init_scale: float = 1.0
    norm: bool = False
    residual: bool = False
    bias: float | None = None  # constant bias before each hidden activation
    optimizer: str = "sgd"  # sgd | adam | adamw | sparse
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"  # constant | warmup | cosine | restarts | step
    batch_size: int = 32
    input_scale: float = 1.0
    loss_scale: float = 1.0  # the user's own factor on the loss
    sign: float = 1.0
    frozen: tuple[str, ...] = ()  # prefixes of parameter names
    detach_at: int | None = None  # hidden layer after which the graph is cut
    dtype: str = "float32"  # float32 | float16 | bfloat16
    scaler: bool = False
    clip: float | None = None  # ceiling of the gradient norm
    adaptive: bool = False  # AutoClip beside it
    recurrent_scale: float | None = None  # spectral radius of the recurrent weights
    extra: str = ""  # what a special case needs, see models.py
    lr_second: float | None = None  # of the discriminator
