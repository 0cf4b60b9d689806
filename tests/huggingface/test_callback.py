"""Under transformers' own Trainer, on a tiny random model: measured before it clips, and no weight gets a NaN."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers

from lightning_gradguard import NormClip, read_run
from lightning_gradguard.huggingface import GradGuardCallback

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

TOKENS = [{"input_ids": row, "labels": row} for row in torch.randint(0, 32, (16, 8), generator=torch.manual_seed(0))]


class Model(transformers.GPT2LMHeadModel):
    """A tiny random language model; at the calls in ``bad`` its loss is not a number."""

    bad: tuple[int, ...] = ()
    calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.loss = output.loss * (math.nan if self.calls in self.bad else 1.0)
        self.calls += 1
        return output


def trained(tmp_path: Any, bad: tuple[int, ...] = (), callback: dict[str, Any] | None = None, **options: Any) -> Any:
    transformers.set_seed(0)
    model = Model(transformers.GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=2, n_head=2))
    model.bad = bad
    defaults = {"max_grad_norm": 0.1, "max_steps": 6, "logging_steps": 1, "per_device_train_batch_size": 2}
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
        **{**defaults, **options},
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=TOKENS)
    guard = None if callback is None else GradGuardCallback(trainer, **callback)
    if guard is not None:
        trainer.add_callback(guard)
    trainer.train()
    return trainer, guard


def same(left: Any, right: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.model.parameters(), right.model.parameters(), strict=True))


def test_watching_changes_no_bit_and_sees_the_gradient_before_it_is_clipped(tmp_path):
    plain, _ = trained(tmp_path / "plain")
    watched, guard = trained(tmp_path / "watched", callback={})
    assert same(plain, watched)
    logged = [entry["grad_norm"] for entry in plain.state.log_history if "grad_norm" in entry]
    assert [record.total_norm for record in guard.records] == pytest.approx(logged, rel=1e-4)
    assert min(logged) > 0.1, "the Trainer clipped each of these"
    assert "clip_grad_norm_" not in vars(watched.accelerator), "the Trainer is as it was"


@pytest.mark.parametrize("max_grad_norm", [0.1, 0.0])
def test_a_step_that_is_not_finite_moves_no_weight(tmp_path, max_grad_norm):
    spoiled, _ = trained(tmp_path / "spoiled", bad=(2,), max_grad_norm=max_grad_norm)
    guarded, guard = trained(tmp_path / "guarded", bad=(2,), callback={}, max_grad_norm=max_grad_norm)
    assert not all(p.isfinite().all() for p in spoiled.model.parameters())
    assert all(p.isfinite().all() for p in guarded.model.parameters())
    assert [record.step for record in guard.records if record.verdict == "skipped"] == [2]


def test_a_policy_clips_in_place_of_the_trainer(tmp_path):
    theirs, _ = trained(tmp_path / "theirs", max_grad_norm=0.1)
    ours, guard = trained(tmp_path / "ours", callback={"clip": NormClip(0.1)}, max_grad_norm=0.0)
    assert {record.verdict for record in guard.records} == {"clipped"}
    for a, b in zip(theirs.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_both_clipping_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"max_grad_norm=0.1\) and GradGuardCallback\(clip=...\) would both clip"):
        trained(tmp_path, callback={"clip": NormClip(1.0)})


def test_accumulated_batches_are_one_step(tmp_path):
    _, guard = trained(tmp_path, callback={}, gradient_accumulation_steps=2, max_steps=3)
    assert [record.step for record in guard.records] == [0, 1, 2]


def test_stop_ends_the_training(tmp_path):
    trainer, _ = trained(tmp_path, bad=(2,), callback={"on_nonfinite": "stop"})
    assert trainer.state.global_step == 3


def test_it_says_how_it_went_and_leaves_its_records(tmp_path, capsys):
    _, guard = trained(tmp_path, bad=(2,), callback={})
    assert "GradGuard: 6 steps, 1 not finite and skipped (17 %)" in capsys.readouterr().out
    assert [r.to_json() for r in read_run(tmp_path).records] == [r.to_json() for r in guard.records]


def test_a_bad_argument_is_named(tmp_path):
    with pytest.raises(ValueError, match="on_nonfinite must be one of 'skip', 'stop', 'raise', got 'rollback'"):
        GradGuardCallback(None, on_nonfinite="rollback")
