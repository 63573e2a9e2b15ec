"""Few clients a round, with strongly skewed labels: does `lr="auto"` keep rates that learn?

    python benchmarks/federation_sampling.py

The demo's task on 20 clients, each of almost one label alone, of which a round has 1, 2, 5 or all;
as many local steps in all, whatever the share. Rounds' losses are then of other labels each, and
vary far more than they fall.
"""

from __future__ import annotations

from pathlib import Path

import torch
from machine import machine
from targets.problems import PROBLEMS, load
from tqdm.auto import tqdm

from fedspzo.federated import FederationConfig, OptimizerConfig, dirichlet, run

RESULTS = Path(__file__).parent / "results/federation_sampling.md"
CLIENTS, ALPHA, STEPS = 20, 0.1, 300
SHARES, SEEDS = (0.05, 0.1, 0.25, 1.0), range(3)


def main() -> None:
    torch.set_num_threads(1)
    loaded = load(next(problem for problem in PROBLEMS if problem.name == "decoder"))
    labels = [example.label for example in loaded.train]
    lines = [
        "# Few clients a round",
        "",
        f'`python benchmarks/federation_sampling.py`: `lr="auto"` on {CLIENTS} clients, alpha'
        f" {ALPHA}, after {STEPS} clients' steps; accuracy and loss on examples never trained on."
        f" On {machine()}, torch {torch.__version__}.",
        "",
        f"| clients a round | rounds | {' | '.join(f'seed {seed}' for seed in SEEDS)} |",
        f"| --- | --- |{' --- |' * len(SEEDS)}",
    ]
    jobs = [(share, seed) for share in SHARES for seed in SEEDS]
    cells: dict[float, list[str]] = {share: [] for share in SHARES}
    for share, seed in tqdm(jobs, unit="run"):
        blocks = loaded.split("auto")
        parts = dirichlet(labels, clients=CLIENTS, alpha=ALPHA, seed=seed)
        rounds = round(STEPS / (share * CLIENTS))
        run(
            blocks,
            loaded.task,
            [[loaded.train[i] for i in part] for part in parts],
            FederationConfig(
                clients=CLIENTS,
                participation=share,
                rounds=rounds,
                local_steps=1,
                batch_size=loaded.problem.batch,
                seed=seed,
            ),
            OptimizerConfig(lr="auto"),
        )
        found = loaded.evaluate(blocks.model)
        cells[share].append(f"{found['accuracy']:.1%}, {found['loss']:.2f}")
        if len(cells[share]) == len(SEEDS):
            lines.append(f"| {share * CLIENTS:.0f} | {rounds} | {' | '.join(cells[share])} |")
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
