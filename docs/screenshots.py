"""Trains four small models on handwritten digits, and takes the pictures of the README from TensorBoard.

    python docs/screenshots.py --out docs   # needs chromium and chromedriver; a minute or two

Without `--out` they go to a new folder under `runs/`, so that nothing recorded is overwritten by trying it.

Nothing is drawn by hand: the transformer is fed a few batches that nobody normalized, and one with a NaN in it; the
20 sigmoid layers vanish by themselves, and the same layers with residual connections and normalization do not. The last
one is the transformer again, without clipping: on its norms a policy is tried.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightning_gradguard import GradGuard, GradientNormMonitor, ZClip
from tests.browser.conftest import Board, open_browser
from tests.browser.tab import Tab

STEPS = 700


class Transformer(nn.Module):
    """Reads a digit row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 48)
        self.position = nn.Parameter(torch.randn(8, 48) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True, norm_first=True) for _ in range(4)
        )
        self.head = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the ten digits."""
        tokens = self.embed(images.view(-1, 8, 8)) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(1))


class Stack(nn.Module):
    """Twenty layers, plain sigmoid or residual."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 64)
        make = (lambda: nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.ReLU())) if residual else None
        self.blocks = nn.ModuleList(
            make() if make else nn.Sequential(nn.Linear(64, 64), nn.Sigmoid()) for _ in range(18)
        )
        self.head = nn.Linear(64, 10)
        self.residual = residual

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the ten digits."""
        x = self.stem(images)
        for block in self.blocks:
            x = x + block(x) if self.residual else block(x)
        return self.head(x)


class Digits(pl.LightningModule):
    """Classifies digits; at the steps given, a batch comes in as no batch should."""

    def __init__(self, net: nn.Module, lr: float, raw: tuple[int, ...] = (), broken: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.net, self.lr, self.raw, self.broken = net, lr, raw, broken

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch, spoiled at the steps given."""
        images, labels = batch
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        images = images * 200.0 if step in self.raw else images
        if step in self.broken:
            images = images.index_fill(0, torch.tensor([0]), torch.nan)
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.net.parameters(), lr=self.lr)


def train(logdir: Path, name: str, module: Digits, callback: pl.Callback) -> None:
    """Trains one model for :data:`STEPS` steps."""
    pl.seed_everything(0, verbose=False)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16 - 0.5, torch.tensor(labels))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        logger=TensorBoardLogger(logdir, name="", version=name),
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=32, shuffle=True))


@contextmanager
def tab_of(logdir: Path) -> Iterator[Tab]:
    """The tab in a browser, once TensorBoard knows every run below the folder."""
    board = Board(logdir)
    driver = open_browser(Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp()), size="1500,1100")
    try:
        for run in logdir.iterdir():
            board.wait_for(f'"{run.name}"')
        yield Tab(driver, board.address)
    finally:
        driver.quit()
        board.stop()


def take_pictures(logdir: Path, out: Path) -> None:
    """Saves what the tab shows of three runs."""
    with tab_of(logdir) as tab:
        tab.load("&p.gradguard.run=transformer")
        tab.find("#card-nonfinite").click()
        save(tab, out / "gradient-flow.png")
        tab.is_dark(True)
        tab.wait(lambda: tab.data("theme") == "dark", "dark theme")
        save(tab, out / "gradient-flow-dark.png")
        tab.load("&p.gradguard.run=sigmoid&p.gradguard.compare=residual")
        save(tab, out / "gradient-flow-vanishing.png")
        tab.load(state="runs")
        save(tab, out / "gradient-flow-runs.png")


def take_trial(logdir: Path, out: Path) -> None:
    """Saves a policy that is tried on a run that was not clipped."""
    with tab_of(logdir) as tab:
        tab.load("&p.gradguard.run=unclipped&p.gradguard.clip=ZClip(z=3.0)")
        tab.wait(lambda: "would have clipped" in tab.find("#clip-answer").text, "answer", timeout=120.0)
        save(tab, out / "gradient-flow-whatif.png")


def save(tab: Tab, path: Path) -> None:
    """Saves what the browser shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time.sleep(0.5)  # for what TensorBoard animates
    tab.driver.save_screenshot(str(path))
    print(f"wrote {path}")


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/screenshots"), help="folder (default: %(default)s)")
    out = parser.parse_args().out
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        runs, tried = Path(folder, "runs"), Path(folder, "tried")
        bad = {"raw": (210, 330, 480, 610)}
        trainings: dict[Path, tuple[Callable[[], Digits], pl.Callback]] = {
            tried / "unclipped": (
                lambda: Digits(Transformer(), lr=2e-3, **bad),
                GradientNormMonitor(log_every_n_steps=2),
            ),
            runs / "transformer": (
                lambda: Digits(Transformer(), lr=2e-3, **bad, broken=(400,)),
                GradGuard(clip=ZClip(), log_every_n_steps=2),
            ),
            runs / "sigmoid": (lambda: Digits(Stack(False), lr=1e-3), GradientNormMonitor(log_every_n_steps=2)),
            runs / "residual": (lambda: Digits(Stack(True), lr=1e-3), GradientNormMonitor(log_every_n_steps=2)),
        }
        for path, (make, callback) in trainings.items():
            torch.manual_seed(0)
            train(path.parent, path.name, make(), callback)
        take_pictures(runs, out)
        take_trial(tried, out)


if __name__ == "__main__":
    main()
