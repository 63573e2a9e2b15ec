"""A Lightning module with steps of SPZO: the packaged demo model learns praise from blame."""

import argparse
import json
from importlib.resources import files
from pathlib import Path

import lightning
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedspzo import SPZO, split

arguments = argparse.ArgumentParser()
arguments.add_argument("--epochs", type=int, default=2)
arguments.add_argument("--output", help="a folder for checkpoints, one an epoch")
arguments.add_argument("--resume", help="a checkpoint to go on from")
options = arguments.parse_args()

source = str(files("fedspzo.demo") / "model")
tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
words = {"positive": " great", "negative": " terrible"}


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False  # which would compute gradients
        self.model = AutoModelForCausalLM.from_pretrained(source)

    def configure_optimizers(self) -> dict:
        optimizer = SPZO(split(self.model, at=-1), lr=(2e-3, 0.02), perturbations=(1, 6))
        steps = self.trainer.estimated_stepping_batches
        return {"optimizer": optimizer, "lr_scheduler": CosineAnnealingLR(optimizer, steps)}

    def training_step(self, batch: dict, index: int) -> None:
        loss = self.optimizers().step(lambda: self.model(**batch).loss)
        self.lr_schedulers().step()
        self.log("loss", loss)

    def validation_step(self, batch: dict, index: int) -> None:
        self.log("test_loss", self.model(**batch).loss, batch_size=len(batch["labels"]))


def rows(name: str) -> list[str]:
    lines = (Path(__file__).parents[1] / "sentiment" / name).read_text().splitlines()
    return [f"{row['text']} It was{words[row['label']]}" for row in map(json.loads, lines)]


def collate(texts: list[str]) -> dict[str, torch.Tensor]:
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].clone()
    labels[:, :-1] = -100  # only the last word is learned
    return {**batch, "labels": labels}


train = DataLoader(rows("train.jsonl"), 16, collate_fn=collate)
test = DataLoader(rows("test.jsonl"), 50, collate_fn=collate)
callbacks = []
if options.output:
    kept = lightning.pytorch.callbacks.ModelCheckpoint(options.output, "{epoch}", save_top_k=-1)
    callbacks.append(kept)
trainer = lightning.Trainer(
    accelerator="cpu",
    max_epochs=options.epochs,
    logger=False,
    enable_checkpointing=bool(options.output),
    enable_progress_bar=False,
    callbacks=callbacks,
)
module = Classifier()
if not options.resume:
    print(f"loss before: {trainer.validate(module, test, verbose=False)[0]['test_loss']:.6f}")
trainer.fit(module, train, ckpt_path=options.resume)
print(f"loss after: {trainer.validate(module, test, verbose=False)[0]['test_loss']:.6f}")
