"""How long `fedspzo run` takes to read 40,000 rows of each format, and how much memory.

Each format is read in a process of its own, from its config to its examples. Memory is the largest
resident size of the process, interpreter included. Encoding is timed with the packaged demo model's
tokenizer; its memory is what it adds to a process that has imported torch and transformers.

    python benchmarks/read_data.py
"""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from machine import machine

ROWS = 40_000
WORDS = 30
"""Number of words in a text."""

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "csv.gz", "texts", "dataset")

CONFIG = """
[model]
name = "demo"
[task]
type = "prompt"
template = "{{text}} It was"
verbalizers = {{ positive = "great", negative = "terrible" }}
[data]
train = "{source}"
test_share = 0.1
[federation]
clients = 4
rounds = 1
"""


def rows() -> Iterator[dict[str, str]]:
    """Texts of everyday words, each once, and their labels."""
    draw = random.Random(0)
    words = [
        "the",
        "film",
        "was",
        "fine",
        "dull",
        "and",
        "I",
        "saw",
        "it",
        "with",
        "friends",
        "who",
    ]
    for number in range(ROWS):
        text = " ".join(draw.choices(words, k=WORDS - 1))
        yield {"text": f"{number} {text}", "label": draw.choice(["positive", "negative"])}


def write(folder: Path, form: str) -> Path:
    """Write the rows, and return the file or folder."""
    path, kind = folder / f"data.{form}", form.removesuffix(".gz")
    if form == "texts":
        for number, row in enumerate(rows()):
            (path / row["label"]).mkdir(parents=True, exist_ok=True)
            (path / row["label"] / f"{number}.txt").write_text(row["text"])
        return path
    if form in ("parquet", "dataset"):
        import datasets

        data = datasets.Dataset.from_list(list(rows()))
        data.to_parquet(path) if form == "parquet" else data.save_to_disk(path)
        return path
    if kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows())
    elif kind == "json":
        text = json.dumps(list(rows()), indent=1)
    else:
        separator = "\t" if kind == "tsv" else ","
        table = [("text", "label"), *((row["text"], row["label"]) for row in rows())]
        text = "".join(f"{separator.join(row)}\n" for row in table)
    data_bytes = text.encode()
    path.write_bytes(gzip.compress(data_bytes) if form.endswith(".gz") else data_bytes)
    return path


def resident() -> float:
    """The largest resident size so far, in MB."""
    # getrusage's would be that of the process which started this one, if that is larger
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024 / 1e6


def read(config: str) -> None:
    """Read as `fedspzo run` does, and print seconds, processor seconds and MB."""
    start = time.perf_counter()
    from fedspzo.app.config import load
    from fedspzo.app.data import read_splits

    loaded = load(config)
    splits = read_splits(loaded.data, loaded.task)
    assert splits.size == ROWS
    print(time.perf_counter() - start, time.process_time(), resident())


def encode(config: str) -> None:
    """Encode as `fedspzo run` does, and print both seconds and the MB that this adds."""
    from fedspzo.app import models
    from fedspzo.app.config import load
    from fedspzo.app.data import read_splits

    loaded = load(config)
    splits = read_splits(loaded.data, loaded.task)
    model, task, _ = models.load(loaded, splits)
    before, start, used = resident(), time.perf_counter(), time.process_time()
    parts = [models.encode("demo", task, model, part) for part in (splits.train, splits.test)]
    seconds, used = time.perf_counter() - start, time.process_time() - used
    assert sum(map(len, parts)) == task.encoded.done == ROWS
    print(seconds, used, resident() - before)


def main() -> None:
    print(f"{ROWS:,} rows of {WORDS} words; {machine()}\n")
    print("| what | seconds | processor seconds | MB |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMATS:
            place = Path(folder, form.replace(".", "_"))
            place.mkdir()
            source = write(place, form)
            config = place / "run.toml"
            config.write_text(CONFIG.format(source=source.name))
            for step in ("read", "encode") if form == FORMATS[-1] else ("read",):
                command = [sys.executable, __file__, step, str(config)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                seconds, used, size = map(float, done.stdout.split()[-3:])
                name = f"read {form}" if step == "read" else "encode"
                print(f"| {name} | {seconds:.1f} | {used:.1f} | {size:.0f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        {"read": read, "encode": encode}[sys.argv[1]](sys.argv[2])
    else:
        main()
