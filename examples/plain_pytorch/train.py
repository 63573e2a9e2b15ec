"""A plain PyTorch loop: a small convolutional network learns to tell four kinds of stripes."""

import argparse

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from fedspzo import SPZO, split


def stripes(count: int, seed: int) -> TensorDataset:
    """Noisy 8 x 8 images of horizontal, vertical, falling or rising stripes."""
    random = torch.Generator().manual_seed(seed)
    kind = torch.randint(4, (count,), generator=random)
    phase = 6.3 * torch.rand(count, 1, 1, generator=random)
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    across = torch.stack([1.4 * y, 1.4 * x, x - y, x + y])[kind]
    noise = torch.randn(count, 8, 8, generator=random)
    return TensorDataset((torch.sin(across + phase) + 0.5 * noise)[:, None], kind)


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    images, kinds = data.tensors
    return (model(images).argmax(1) == kinds).float().mean().item()


arguments = argparse.ArgumentParser()
arguments.add_argument("--epochs", type=int, default=10)
arguments.add_argument("--resume", help="a checkpoint to go on from")
arguments.add_argument("--output", help="where checkpoints go, e.g. checkpoint-{epoch}.pt")
options = arguments.parse_args()

torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1)),
    *(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)),
)
train, test = stripes(2048, seed=1), stripes(512, seed=2)
optimizer = SPZO(split(model, at=5), lr=(8e-3, 0.13), perturbations=(1, 8))
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
first, parts = 1, {"model": model, "optimizer": optimizer, "scheduler": scheduler}
if options.resume:
    checkpoint = torch.load(options.resume)
    first = checkpoint["epoch"] + 1
    for name, part in parts.items():
        part.load_state_dict(checkpoint[name])
print(f"accuracy before: {accuracy(model, test):.3f}")
for epoch in range(first, options.epochs + 1):
    losses, order = [], torch.Generator().manual_seed(epoch)
    for images, kinds in DataLoader(train, 64, shuffle=True, generator=order):
        losses.append(optimizer.step(lambda: cross_entropy(model(images), kinds)))
    scheduler.step()
    if options.output:
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"epoch": epoch}, options.output.format(epoch=epoch))
    print(f"epoch {epoch}: loss {sum(losses) / len(losses):.6f}")
print(f"accuracy after: {accuracy(model, test):.3f}")
