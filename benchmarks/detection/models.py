"""The architectures, each with the knobs that faults turn."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from .setup import Setup

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU, "silu": nn.SiLU}


def init_(module: nn.Module, setup: Setup) -> None:
    """Initializes all weight matrices as the set-up says; norms and embeddings keep the framework's."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            weight_(part.weight, setup)
            if setup.init != "default" and part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.RNNBase):
            for name, weight in part.named_parameters():
                if name.startswith("weight") and (setup.init in ("zero", "normal") or setup.init_scale != 1.0):
                    weight_(weight, setup)
                elif setup.init == "zero":
                    nn.init.zeros_(weight)
                if name.startswith("weight_hh") and setup.recurrent_scale is not None:
                    nn.init.orthogonal_(weight)
                    weight.data.mul_(setup.recurrent_scale)


def weight_(weight: Tensor, setup: Setup) -> None:
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    if setup.init == "he":
        nn.init.normal_(weight, std=math.sqrt(2.0 / fan_in))
    elif setup.init == "xavier":
        nn.init.normal_(weight, std=math.sqrt(2.0 / (fan_in + fan_out)))
    elif setup.init == "normal":
        nn.init.normal_(weight, std=0.01)
    elif setup.init == "unit":
        nn.init.normal_(weight, std=1.0)
    elif setup.init == "zero":
        nn.init.zeros_(weight)
    with torch.no_grad():
        weight.mul_(setup.init_scale)


class MLP(nn.Module):
    def __init__(self, setup: Setup, sizes: list[int], last: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.setup = setup
        for n_in, n_out in itertools.pairwise(sizes[:-1]):
            parts: list[nn.Module] = [nn.Linear(n_in, n_out)]
            if setup.norm:
                parts.append(nn.BatchNorm1d(n_out))
            parts.append(ACTIVATIONS[setup.activation]())
            if setup.extra == "dropout":
                parts.append(nn.Dropout(0.3))
            self.blocks.append(nn.Sequential(*parts))
        self.head = nn.Linear(sizes[-2], sizes[-1])
        self.last = last or nn.Identity()
        init_(self, setup)
        set_bias_(self.blocks, setup)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            y = block(x)
            x = x + y if self.setup.residual and y.shape == x.shape else y
            if self.setup.detach_at == index:
                x = x.detach()
        return self.last(self.head(x))


def set_bias_(blocks: nn.Module, setup: Setup) -> None:
    """The bias that each hidden activation sees."""
    if setup.bias is not None:
        for part in blocks.modules():
            if isinstance(part, nn.Linear | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d) and part.bias is not None:
                nn.init.constant_(part.bias, setup.bias)


class CNN(nn.Module):
    """Plain or residual stack of 3x3 convolutions on 8x8 images."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup = setup
        self.stem = nn.Conv2d(1, setup.width, 3, padding=1)
        self.blocks = nn.ModuleList()
        for index in range(setup.depth - 2):
            stride = 2 if index in (setup.depth // 3, 2 * setup.depth // 3) and not setup.residual else 1
            conv = nn.Conv2d(setup.width, setup.width, 3, padding=1, stride=stride)
            parts: list[nn.Module] = [conv]
            if setup.norm:
                parts.append(nn.BatchNorm2d(setup.width))
            parts.append(ACTIVATIONS[setup.activation]())
            self.blocks.append(nn.Sequential(*parts))
        self.head = nn.Linear(setup.width, 10)
        init_(self, setup)
        set_bias_(self.blocks, setup)
        if setup.residual and setup.extra == "zero-residual":
            for block in self.blocks:
                nn.init.zeros_(block[0].weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.view(-1, 1, 8, 8))
        for index, block in enumerate(self.blocks):
            y = block(x)
            x = x + y if self.setup.residual else y
            if self.setup.detach_at == index:
                x = x.detach()
        return self.head(x.mean((2, 3)))


class Recurrent(nn.Module):
    """RNN, LSTM or GRU over tokens (language model) or over rows of an image (classification)."""

    def __init__(self, setup: Setup, vocabulary: int | None) -> None:
        super().__init__()
        self.setup = setup
        self.embed = nn.Embedding(vocabulary, 16) if vocabulary else nn.Linear(4, 16)
        cell = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[setup.arch]
        more = {"nonlinearity": "relu"} if "relu-rnn" in setup.extra else {}
        self.rnn = cell(16, setup.width, batch_first=True, **more)
        self.head = nn.Linear(setup.width, vocabulary or 10)
        self.language = vocabulary is not None
        init_(self, setup)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x if self.language else x.view(len(x), 16, 4))
        if "delay" in self.setup.extra:
            x = torch.cat([x, x.new_zeros(len(x), 8, x.shape[2])], dim=1)
        x, _ = self.rnn(x)
        if self.setup.detach_at is not None:
            x = x.detach()
        return self.head(x if self.language else x[:, -1])


class Block(nn.Module):
    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(setup.width) if setup.norm else nn.Identity()
        self.qkv = nn.Linear(setup.width, 3 * setup.width)
        self.out = nn.Linear(setup.width, setup.width)
        self.norm2 = nn.LayerNorm(setup.width) if setup.norm else nn.Identity()
        self.up = nn.Linear(setup.width, 2 * setup.width)
        self.act = ACTIVATIONS[setup.activation]()
        self.down = nn.Linear(2 * setup.width, setup.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, 2, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        return x + self.down(self.act(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, setup: Setup, vocabulary: int) -> None:
        super().__init__()
        self.setup = setup
        self.embed = nn.Embedding(vocabulary, setup.width)
        self.position = nn.Parameter(torch.randn(32, setup.width) * 0.02)
        self.blocks = nn.ModuleList(Block(setup) for _ in range(setup.depth))
        self.norm = nn.LayerNorm(setup.width) if setup.norm else nn.Identity()
        self.head = nn.Linear(setup.width, vocabulary)
        nn.init.normal_(self.embed.weight, std=0.02 if setup.init == "default" else 1.0)
        init_(self, setup)
        if setup.bias is not None:
            for block in self.blocks:
                nn.init.constant_(block.up.bias, setup.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        for index, block in enumerate(self.blocks):
            x = block(x)
            if self.setup.detach_at == index:
                x = x.detach()
        return self.head(self.norm(x))


class GAN(nn.Module):
    def __init__(self, setup: Setup) -> None:
        super().__init__()
        generator = [nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64)]
        self.generator = nn.Sequential(*generator, nn.ReLU(), nn.Linear(64, 64), nn.Tanh())
        leaky = nn.LeakyReLU(0.2)
        self.discriminator = nn.Sequential(nn.Linear(64, 64), leaky, nn.Linear(64, 64), leaky, nn.Linear(64, 1))
        init_(self, setup)


class LowRank(nn.Module):
    """A frozen pretrained layer with a trainable low-rank adapter, the second factor zero at first."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Bag(nn.Module):
    """Bag of character pairs with a sparse embedding."""

    def __init__(self, vocabulary: int, sparse: bool) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(vocabulary * 16, 16, sparse=sparse)
        self.head = nn.Linear(16, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        pairs = tokens[:, :-1] * 16 + tokens[:, 1:] % 16
        return self.head(self.embed(pairs[:, -8:]))


class GaussianRegressor(nn.Module):
    """Mean and log variance; its loss is a density's, and goes below zero when all is well."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.body = MLP(setup, [32, setup.width, setup.width, 64])

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x[:, :32])
