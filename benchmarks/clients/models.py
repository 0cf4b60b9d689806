"""One function for each published model: trains it on small synthetic data, as its own users would.

Each takes the callbacks and further arguments of the Trainer, and hands them on the way the package offers. About
twenty steps; what is imported is imported inside, since each package needs seconds for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

Train = Callable[[list[Callback], dict[str, Any]], None]
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}
HOURS, SERIES = 96, 4


def waves() -> np.ndarray:
    """Daily waves with noise, one a row."""
    noise = np.random.default_rng(0).normal(0.0, 0.1, (SERIES, HOURS))
    hours = np.arange(HOURS)
    return np.stack([2.0 + row + np.sin(2 * np.pi * hours / 24 + row) for row in range(SERIES)]) + noise


def frame(names: tuple[str, str, str]) -> Any:
    """The waves as a long table with these names for series, time and value."""
    import pandas as pd

    series, time, value = names
    rows = [
        pd.DataFrame({series: f"s{i}", time: pd.date_range("2026-01-01", periods=HOURS, freq="h"), value: row})
        for i, row in enumerate(waves())
    ]
    return pd.concat(rows, ignore_index=True)


def _pytorch_forecasting(kind: str, callbacks: list[Callback], options: dict[str, Any]) -> None:
    import pytorch_forecasting as forecasting

    table = frame(("series", "time", "value"))
    table["hour"] = table.groupby("series").cumcount()
    data = forecasting.TimeSeriesDataSet(
        table.drop(columns="time"),
        time_idx="hour",
        target="value",
        group_ids=["series"],
        max_encoder_length=12,
        max_prediction_length=6,
        time_varying_unknown_reals=["value"],
        static_categoricals=["series"] if kind == "tft" else [],
    )
    shared: dict[str, Any] = {"hidden_size": 8, "dropout": 0.1, "learning_rate": 0.01, "optimizer": "adam"}
    if kind == "tft":
        model = forecasting.TemporalFusionTransformer.from_dataset(data, hidden_continuous_size=4, **shared)
    else:
        model = forecasting.DeepAR.from_dataset(data, rnn_layers=2, **shared)
    loader = data.to_dataloader(train=True, batch_size=8, num_workers=0)
    trainer = pl.Trainer(max_steps=20, enable_checkpointing=False, callbacks=callbacks, **QUIET | options)
    trainer.fit(model, train_dataloaders=loader)


def pytorch_forecasting_tft(callbacks: list[Callback], options: dict[str, Any]) -> None:
    _pytorch_forecasting("tft", callbacks, options)


def pytorch_forecasting_deepar(callbacks: list[Callback], options: dict[str, Any]) -> None:
    _pytorch_forecasting("deepar", callbacks, options)


def _gluonts(kind: str, callbacks: list[Callback], options: dict[str, Any]) -> None:
    import pandas as pd
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import DeepAREstimator, TemporalFusionTransformerEstimator

    start = pd.Period("2026-01-01", freq="h")
    data = ListDataset([{"start": start, "target": row} for row in waves()], freq="h")
    shared: dict[str, Any] = {
        "freq": "h",
        "prediction_length": 6,
        "context_length": 12,
        "batch_size": 8,
        "num_batches_per_epoch": 20,
        "trainer_kwargs": {"max_epochs": 1, "callbacks": callbacks, **QUIET, **options},
    }
    if kind == "tft":
        estimator = TemporalFusionTransformerEstimator(hidden_dim=8, variable_dim=8, **shared)
    else:
        estimator = DeepAREstimator(hidden_size=8, **shared)
    estimator.train(data)


def gluonts_tft(callbacks: list[Callback], options: dict[str, Any]) -> None:
    _gluonts("tft", callbacks, options)


def gluonts_deepar(callbacks: list[Callback], options: dict[str, Any]) -> None:
    _gluonts("deepar", callbacks, options)


def _darts(make: Callable[..., Any], callbacks: list[Callback], options: dict[str, Any]) -> None:
    from darts import TimeSeries

    trainer = {"max_steps": 20, "callbacks": callbacks, **QUIET, **options}
    model = make(n_epochs=5, batch_size=8, random_state=0, pl_trainer_kwargs=trainer)
    model.fit([TimeSeries.from_values(row) for row in waves()[:2]])


def darts_lstm(callbacks: list[Callback], options: dict[str, Any]) -> None:
    from darts.models import RNNModel

    def make(**shared: Any) -> Any:
        return RNNModel(input_chunk_length=12, training_length=18, model="LSTM", hidden_dim=8, **shared)

    _darts(make, callbacks, options)


def darts_nbeats(callbacks: list[Callback], options: dict[str, Any]) -> None:
    from darts.models import NBEATSModel

    def make(**shared: Any) -> Any:
        return NBEATSModel(
            input_chunk_length=12, output_chunk_length=6, num_stacks=3, num_blocks=1, layer_widths=16, **shared
        )

    _darts(make, callbacks, options)


def neuralforecast_nhits(callbacks: list[Callback], options: dict[str, Any]) -> None:
    from neuralforecast import NeuralForecast
    from neuralforecast.models import NHITS

    trainer = {**QUIET, **options, "callbacks": callbacks}
    model = NHITS(
        h=6, input_size=12, max_steps=20, batch_size=4, windows_batch_size=16, mlp_units=3 * [[16, 16]], **trainer
    )
    NeuralForecast(models=[model], freq="h").fit(frame(("unique_id", "ds", "y")))


def chemprop_mpnn(callbacks: list[Callback], options: dict[str, Any]) -> None:
    from chemprop import data, models
    from chemprop import nn as parts

    smiles = ["C" * n + end for n in range(1, 9) for end in ("O", "N", "C(=O)O", "c1ccccc1")]
    points = [data.MoleculeDatapoint.from_smi(s, np.array([float(len(s))])) for s in smiles]
    molecules = data.MoleculeDataset(points)
    scaler = molecules.normalize_targets()
    message, head = (
        parts.BondMessagePassing(d_h=16, depth=2),
        parts.RegressionFFN(
            input_dim=16, hidden_dim=16, output_transform=parts.UnscaleTransform.from_standard_scaler(scaler)
        ),
    )
    model = models.MPNN(message, parts.MeanAggregation(), head, batch_norm=True)
    loader = data.build_dataloader(molecules, batch_size=8, num_workers=0, seed=0)
    trainer = pl.Trainer(max_epochs=5, enable_checkpointing=False, callbacks=callbacks, **QUIET | options)
    trainer.fit(model, train_dataloaders=loader)


def scvi_tools_scvi(callbacks: list[Callback], options: dict[str, Any]) -> None:
    import anndata
    import scvi

    cells = anndata.AnnData(np.random.default_rng(0).negative_binomial(5, 0.3, (160, 40)).astype(np.float32))
    scvi.settings.seed = 1  # it splits the cells by a seed of its own
    scvi.model.SCVI.setup_anndata(cells)
    model = scvi.model.SCVI(cells, n_hidden=16, n_latent=4)
    quiet = {key: value for key, value in QUIET.items() if key != "accelerator"}
    model.train(max_epochs=5, batch_size=32, accelerator="cpu", train_size=0.8, callbacks=callbacks, **quiet | options)


class GraphClassifier(pl.LightningModule):
    """A GIN as its package's examples use it: convolutions with batch normalization, and a mean over nodes."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import GIN

        self.net = GIN(in_channels=5, hidden_channels=16, num_layers=3, norm="batch_norm", dropout=0.1)
        self.head = nn.Linear(16, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        from torch_geometric.nn import global_mean_pool

        nodes = self.net(batch.x, batch.edge_index)
        return nn.functional.cross_entropy(self.head(global_mean_pool(nodes, batch.batch)), batch.y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def torch_geometric_gin(callbacks: list[Callback], options: dict[str, Any]) -> None:
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader
    from torch_geometric.utils import erdos_renyi_graph

    graphs = []
    for index in range(64):
        label = index % 2
        edges = erdos_renyi_graph(10, 0.2 + 0.3 * label)
        graphs.append(Data(x=torch.randn(10, 5) + label, edge_index=edges, y=torch.tensor([label])))
    trainer = pl.Trainer(max_epochs=3, enable_checkpointing=False, callbacks=callbacks, **QUIET | options)
    trainer.fit(GraphClassifier(), DataLoader(graphs, batch_size=8, shuffle=True))


class LanguageModel(pl.LightningModule):
    """A small GPT-2 of which only the adapters are trained; each sequence has a weight."""

    def __init__(self) -> None:
        super().__init__()
        from peft import LoraConfig, get_peft_model
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(vocab_size=32, n_positions=16, n_embd=32, n_layer=2, n_head=2)
        adapters = LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True)
        self.net = get_peft_model(GPT2LMHeadModel(config), adapters)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        tokens, weight = batch
        logits = self.net(input_ids=tokens).logits[:, :-1]
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        return (losses.mean(1) * weight).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=0.01)


def transformers_gpt2_lora(callbacks: list[Callback], options: dict[str, Any]) -> None:
    tokens = (torch.arange(16) * torch.randint(1, 5, (160, 1))) % 32
    data = torch.utils.data.TensorDataset(tokens, torch.ones(160))
    trainer = pl.Trainer(max_epochs=1, enable_checkpointing=False, callbacks=callbacks, **QUIET | options)
    trainer.fit(LanguageModel(), torch.utils.data.DataLoader(data, batch_size=8))


MODELS: dict[str, tuple[str, str, Train]] = {
    "pytorch-forecasting-tft": ("pytorch-forecasting", "TFT", pytorch_forecasting_tft),
    "pytorch-forecasting-deepar": ("pytorch-forecasting", "DeepAR", pytorch_forecasting_deepar),
    "gluonts-tft": ("gluonts", "TFT", gluonts_tft),
    "gluonts-deepar": ("gluonts", "DeepAR", gluonts_deepar),
    "darts-lstm": ("darts", "LSTM, float64", darts_lstm),
    "darts-nbeats": ("darts", "N-BEATS, float64", darts_nbeats),
    "neuralforecast-nhits": ("neuralforecast", "NHITS", neuralforecast_nhits),
    "chemprop-mpnn": ("chemprop", "MPNN", chemprop_mpnn),
    "scvi-tools-scvi": ("scvi-tools", "SCVI", scvi_tools_scvi),
    "torch-geometric-gin": ("torch-geometric", "GIN", torch_geometric_gin),
    "transformers-gpt2-lora": ("transformers", "GPT-2 with LoRA (peft)", transformers_gpt2_lora),
}
