"""Lightning: manual optimization with SPZO, and the error of automatic optimization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from spzo_toys import llama, same, weights
from torch.utils.data import DataLoader
from trainer_toys import rows

from fedspzo import SPZO, split
from fedspzo.journal import digest

pytestmark = pytest.mark.slow


class Module(lightning.LightningModule):
    def __init__(self, automatic: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = automatic
        self.model = llama()

    def configure_optimizers(self) -> SPZO:
        return SPZO(split(self.model), lr=1e-2, perturbations=(1, 2))

    def training_step(self, batch: Any, _: int) -> Any:
        if self.automatic_optimization:
            return self.model(**batch).loss
        self.log("loss", self.optimizers().step(lambda: self.model(**batch).loss))
        return None


def fit(module: Module, folder: Path, epochs: int = 1, resume: Path | None = None) -> Any:
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(rows(8), 2), ckpt_path=resume)
    return trainer


def test_manual_optimization_takes_the_steps_of_a_plain_loop(tmp_path):
    module = Module()
    trainer = fit(module, tmp_path)
    model = llama()
    optimizer = SPZO(split(model), lr=1e-2, perturbations=(1, 2))
    for batch in DataLoader(rows(8), 2):
        loss = optimizer.step(lambda: model(**batch).loss)  # noqa: B023
    assert digest(model.named_parameters()) == digest(module.model.named_parameters())
    assert trainer.callback_metrics["loss"] == pytest.approx(loss)
    assert trainer.global_step == 4
    assert all(p.grad is None for p in module.parameters())


def test_a_checkpoint_resumes_to_the_same_bits(tmp_path):
    whole, half, resumed = Module(), Module(), Module()
    fit(whole, tmp_path, epochs=2)
    fit(half, tmp_path).save_checkpoint(tmp_path / "half.ckpt")
    fit(resumed, tmp_path, epochs=2, resume=tmp_path / "half.ckpt")
    assert digest(resumed.named_parameters()) == digest(whole.named_parameters())


def test_automatic_optimization_is_told_what_to_do(tmp_path):
    """Its closure turns gradients on for itself, and would fill memory with them silently."""
    module = Module(automatic=True)
    before = weights(module.model)
    with pytest.raises(RuntimeError, match="automatic_optimization = False"):
        fit(module, tmp_path)
    assert all(p.grad is None for p in module.parameters())
    assert same(module.model, before)


def test_a_scaler_of_gradients_is_told_what_to_do():
    model = llama()
    optimizer, scaler = SPZO(split(model), lr=1e-2), torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones((), requires_grad=True)).backward()
    with pytest.raises(RuntimeError, match="no gradients to scale"):
        scaler.step(optimizer, lambda: model(**rows(1)[0]).loss)
