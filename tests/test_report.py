"""Progress, table, figure, and the output folder's safety."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from fedspzo.app.figure import figure_png
from fedspzo.app.human_bytes import human_bytes
from fedspzo.app.metrics import largest_epsilon
from fedspzo.app.printed_tables import partition_lines, print_classes, print_table
from fedspzo.app.progress import ProgressReport
from fedspzo.app.run_folder import WRITTEN, RunFolder
from fedspzo.errors import InputError
from fedspzo.files import write_atomic


def row(number: int, **changes: Any) -> dict[str, Any]:
    values = {"round": number, "train_loss": 0.5, "loss": None, "accuracy": None}
    costs = {"forwards": 10.0 * number, "bytes_up": 1000 * number, "bytes_down": 2000 * number}
    return {**values, **costs, "fedavg_bytes": 10**6 * number, **changes}


SUMMARY = {
    **row(30, accuracy=0.875, loss=0.25),
    "zero_shot_accuracy": 0.6,
    "zero_shot_loss": 0.7,
}


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (999_600, "1 MB"), (2.5e9, "2.5 GB")],
)
def test_human_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text


def test_without_a_terminal_progress_is_about_ten_lines_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressReport("FedSPZO", 200) as progress:
        progress.update(row(0, train_loss=None, accuracy=0.5))
        for number in range(1, 201):
            progress.update(row(number))
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("FedSPZO  round 0/200  accuracy 50.0%")
    # Between evaluations the last accuracy stays.
    assert "round 200/200  loss 0.500  accuracy 50.0%  up 200 kB  down 400 kB" in lines[-1]
    assert lines[-1].endswith("0 s left")


def test_quiet_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReport("FedSPZO", 2, quiet=True) as progress:
        progress.update(row(2))
    assert capsys.readouterr() == ("", "")


def test_table_shows_mezo_only_if_it_ran(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(SUMMARY, "mine")
    alone = capsys.readouterr().out
    for part in ("mine", "60.0%", "87.5%", "0.250", "300", "30 kB", "60 kB", "30 MB"):
        assert part in alone
    assert "MeZO" not in alone
    mezo = {f"mezo_{key}": SUMMARY[key] for key in ("loss", "forwards", "bytes_up", "bytes_down")}
    print_table({**SUMMARY, **mezo, "mezo_accuracy": 0.7}, "mine")
    assert "70.0%" in capsys.readouterr().out
    print_table({**SUMMARY, "loss": None}, "mine")
    assert "not finite" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("painted")
@pytest.mark.parametrize("rounds", [1, 30])
@pytest.mark.parametrize("mezo_loss", [0.6, 1e30, None])
def test_figure_is_a_png_even_of_one_round_or_a_diverged_baseline(
    rounds: int, mezo_loss: float | None
) -> None:
    from matplotlib.image import imread

    rows = [row(n, loss=0.7 - n / 100, accuracy=0.6) for n in range(rounds + 1)]
    mezo = [row(n, loss=mezo_loss, accuracy=0.6) for n in range(rounds + 1)]
    height, width, _ = imread(BytesIO(figure_png(rows, mezo, "mine")), format="png").shape
    assert width > 2 * height > 800


def test_write_atomic_replaces_whole_files_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    write_atomic(path, "neu: ü")
    assert path.read_bytes() == "neu: ü".encode()
    with pytest.raises(TypeError):
        write_atomic(path, 7)  # type: ignore[arg-type]
    assert path.read_bytes() == "neu: ü".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_creating_a_folder_anew_removes_the_earlier_runs_files_only(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with RunFolder(folder) as first:
        assert not folder.exists()
        first.create()
        first.append("metrics.jsonl", {"round": 0})
    (folder / "model").mkdir()
    for mine in ("notes.txt", ".notes.txt.old"):
        (folder / mine).write_text("mine")
    (folder / ".metrics.jsonl.x7_aq0zz").write_text("left by a process that was killed")
    (folder / ".config.toml.swp").write_text("an editor's")
    (folder / ".config.toml.d").mkdir()
    with pytest.raises(InputError, match="--overwrite"):
        RunFolder(folder)
    with RunFolder(folder, overwrite=True) as second:
        second.create()
    kept = [".config.toml.d", ".config.toml.swp"]
    left = [*kept, ".lock", ".notes.txt.old", "metrics.jsonl", "notes.txt"]
    assert sorted(path.name for path in folder.iterdir()) == left
    assert (folder / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("name", sorted({*WRITTEN} - {"metrics.jsonl", "journal.fspz"}))
def test_files_of_something_else_are_not_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"holds '{name}', but no run"):
        RunFolder(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_link_that_leads_nowhere_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "gone")
    with RunFolder(tmp_path) as folder:
        assert not folder.resumes
        folder.create()
    assert not (tmp_path / "gone").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/journal.fspz").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"holds 'journal.fspz', but no run"):
        RunFolder(tmp_path / "other")


def test_a_lock_that_no_run_wrote_stays(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("important")
    with pytest.raises(InputError, match=r"holds '.lock', which no run wrote"):
        RunFolder(tmp_path)
    assert (tmp_path / ".lock").read_text() == "important"


def test_a_model_that_is_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").write_text("kept")
    with RunFolder(folder) as first:
        first.create()
        first.append("metrics.jsonl", {"round": 0})
    (folder / "model").symlink_to(elsewhere)
    with RunFolder(folder, overwrite=True) as second:
        second.create()
        second.save_model(lambda path: (path / "weights").write_text("new"))
    assert not (folder / "model").is_symlink()
    assert (elsewhere / "weights").read_text() == "kept"


@pytest.mark.usefixtures("painted")
def test_a_figure_may_have_any_title() -> None:
    rows = [row(1, loss=0.5, accuracy=0.5)]
    assert figure_png(rows, [], r"from $5% to $10, \x $^$").startswith(b"\x89PNG")


def test_a_table_shows_its_title_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(SUMMARY, "my [v2]: 2 clients")
    assert "my [v2]: 2 clients" in capsys.readouterr().out


def test_the_largest_epsilon_counts_a_client_that_was_never_asked() -> None:
    assert largest_epsilon({"epsilons": [0.0, 1.35, 0.5]}) == 1.35
    assert largest_epsilon({"epsilons": [0.0, None]}) == math.inf


def test_a_failed_save_leaves_no_model_folder(tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        (path / "part").write_text("half")
        raise OSError("disk full")

    with RunFolder(tmp_path) as folder:
        folder.create()
        with pytest.raises(InputError, match=r"cannot be written \(disk full\); name another"):
            folder.save_model(broken)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "metrics.jsonl"]


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.create()
        code = (
            "import sys, fedspzo.app.run_folder as o, pathlib;"
            " o.RunFolder(pathlib.Path(sys.argv[1]))"
        )
        other = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(other, capture_output=True, text=True, check=False)
        assert f"is being written by process {os.getpid()}; wait" in done.stderr
    assert subprocess.run(other, capture_output=True, check=False).returncode == 0


def test_a_run_that_appears_before_the_lock_is_taken_is_left_alone(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        (tmp_path / "journal.fspz").write_bytes(b"another's")
        with pytest.raises(InputError, match="was begun by another process just now"):
            folder.create()
    assert (tmp_path / "journal.fspz").read_bytes() == b"another's"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "sub").create()


def test_the_table_shows_skipped_steps(capsys: pytest.CaptureFixture[str]) -> None:
    mezo = {f"mezo_{key}": SUMMARY[key] for key in ("loss", "forwards", "bytes_up", "bytes_down")}
    both = {**SUMMARY, **mezo, "mezo_accuracy": 0.7, "skipped": 1234, "mezo_skipped": 77}
    print_table(both, "mine")
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("skipped", "1,234", "77"))


def test_progress_does_not_repeat_an_old_loss(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReport("FedSPZO", 2) as progress:
        progress.update(row(0, train_loss=None))
        progress.update(row(1, train_loss=0.25))
        progress.update(row(2, train_loss=None, skipped=6))
    lines = capsys.readouterr().err.splitlines()
    assert "loss 0.250" in lines[1]
    assert "loss" not in lines[2]
    assert "6 steps skipped" in lines[2]


def test_the_partition_is_told_client_by_client_if_there_are_few() -> None:
    clients = [{"good": 3, "bad": 12}, {"bad": 5}]
    assert list(partition_lines(clients, ["ann", "bob"])) == [
        "2 clients with 5 to 15 examples, 1 of them with one label alone",
        "  client ann: 15 examples (12 bad, 3 good)",
        "  client bob: 5 examples (5 bad)",
    ]
    assert list(partition_lines(clients * 20, [str(n) for n in range(40)])) == [
        "40 clients with 5 to 15 examples, 20 of them with one label alone"
    ]
    assert list(partition_lines([{"": 4}, {"": 2}], ["0", "1"])) == [
        "2 clients with 2 to 4 examples",
        "  client 0: 4 examples",
        "  client 1: 2 examples",
    ]


def test_a_confusion_matrix_is_printed_if_it_is_small(capsys: pytest.CaptureFixture[str]) -> None:
    one = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "examples": 4}
    labels = ["[good]", "bad"]
    summary = {
        "macro_f1": 0.625,
        "classes": dict.fromkeys(labels, one),
        "confusion": {"labels": labels, "rows": [[31, 32], [33, 34]]},
    }
    print_classes(summary)
    shown = capsys.readouterr().out
    for part in ("macro F1 62.5%", "[good]", "as [good]", "50.0%", "25.0%", "33.3%", "32", "33"):
        assert part in shown
    many = {"labels": list("abcdefgh"), "rows": [[0] * 8] * 8}
    print_classes({**summary, "confusion": many})
    print_classes({"accuracy": 0.5})
    assert capsys.readouterr().out == ""
