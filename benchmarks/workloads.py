"""The models that costs are measured on: many tensors, tiny tensors, many parameters, recurrence, two optimizers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Bottleneck(nn.Module):
    """A residual block of ResNet-50."""

    def __init__(self, inside: int, width: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *[nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()],
            *[nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()],
            *[nn.Conv2d(width, outside, 1, bias=False), nn.BatchNorm2d(outside)],
        )
        same = stride == 1 and inside == outside
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet50(width: int = 16) -> nn.Module:
    """The 161 tensors of ResNet-50, a quarter as wide: 1.5 M parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inside = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            own = width * 2**stage
            layers.append(Bottleneck(inside, own, 4 * own, 2 if stage and not block else 1))
            inside = 4 * own
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10))


class TinyBlock(nn.Module):
    """A residual layer of 16 units, so that gradients arrive at the bottom of a deep stack."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.tanh(self.linear(x))


def mlp(depth: int = 512) -> nn.Module:
    """Many tiny tensors: 512 layers of 16 x 16."""
    return nn.Sequential(nn.Linear(16, 16), *[TinyBlock() for _ in range(depth)], nn.Linear(16, 10))


def cnn20() -> nn.Module:
    """Twenty convolutions of 16 channels, plain."""
    body = [module for _ in range(19) for module in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


class Lstm(nn.Module):
    """A language model of two LSTM layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        self.lstm = nn.LSTM(64, 128, num_layers=2, batch_first=True)
        self.head = nn.Linear(128, 100)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(tokens))[0]).flatten(0, 1)


class GptBlock(nn.Module):
    """A block of GPT-2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*qkv, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    """GPT-2, with the head tied to the embedding; the defaults are GPT-2 small: 148 tensors, 124 M parameters."""

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12, vocabulary: int = 50257) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(1024, width)
        self.blocks = nn.Sequential(*[GptBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.blocks(self.tokens(tokens) + self.positions(places)))
        return (x @ self.tokens.weight.t()).flatten(0, 1)


class Workload(pl.LightningModule):
    """Trains a network on one random batch, at learning rate 0, so that every step is the same.

    A network that has learned its batch has subnormal gradients, on which arithmetic takes ten times as long.

    Args:
        net: the network.
        batch: input and target.
        fused: whether AdamW runs as one kernel.

    Attributes:
        clip: whether this step is clipped to 1.0 as ``Trainer(gradient_clip_val=1.0)`` does.
        clip_cpu_s: CPU time of the last such clipping.
    """

    clip = False
    clip_cpu_s = 0.0

    def __init__(self, net: nn.Module, batch: tuple[Tensor, Tensor], fused: bool = False) -> None:
        super().__init__()
        self.net, self.batch, self.fused = net, batch, fused

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        inputs, target = self.batch
        loss = cross_entropy(self.net(inputs), target)
        self.log("loss", loss.detach())
        return loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        if self.clip:
            self.clip_as_lightning_does(optimizer)

    def clip_as_lightning_does(self, optimizer: Any) -> None:
        start = time.process_time()
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        self.clip_cpu_s += time.process_time() - start

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.0, fused=self.fused)


class Gan(Workload):
    """A small GAN: two optimizers, manual optimization."""

    def __init__(self) -> None:
        def layers(*widths: int) -> nn.Module:
            pairs = itertools.pairwise(widths)
            return nn.Sequential(*[module for a, b in pairs for module in (nn.Linear(a, b), nn.LeakyReLU(0.2))])

        net = nn.ModuleDict({"generator": layers(32, 128, 256, 784), "critic": layers(784, 256, 128, 1)})
        super().__init__(net, (torch.randn(16, 784), torch.randn(16, 32)))
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        real, noise = self.batch
        generator, critic = self.net["generator"], self.net["critic"]
        first, second = self.optimizers()
        fake = generator(noise)
        for optimizer, loss in (
            (first, -critic(fake).mean()),
            (second, critic(fake.detach()).mean() - critic(real).mean()),
        ):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss)
            if self.clip:
                self.clip_as_lightning_does(optimizer)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [torch.optim.AdamW(net.parameters(), lr=0.0) for net in self.net.children()]


def _images() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 3, 16, 16), torch.randint(10, (8,))


def _tokens(vocabulary: int, batch: int, length: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(vocabulary, (batch, length + 1))
    return tokens[:, :-1], tokens[:, 1:].flatten()


WORKLOADS: dict[str, tuple[str, Callable[[], Workload]]] = {
    "cnn": ("CNN with ResNet-50's layout", lambda: Workload(resnet50(), _images())),
    "mlp": ("MLP of 514 tiny layers", lambda: Workload(mlp(), (torch.randn(32, 16), torch.randint(10, (32,))))),
    "gpt": ("GPT-2 small", lambda: Workload(Gpt(), _tokens(50257, 1, 32), fused=True)),
    "cnn20": ("CNN of 20 layers", lambda: Workload(cnn20(), _images())),
    "lstm": ("LSTM of two layers", lambda: Workload(Lstm(), _tokens(100, 8, 32))),
    "gan": ("GAN with two optimizers", Gan),
}
