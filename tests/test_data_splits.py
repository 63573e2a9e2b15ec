"""Training, validation and test examples: shares of one file, labels, clients, repeated texts."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from data_toys import PROMPT, splits

from fedspzo.app.config import DataConfig, TaskConfig
from fedspzo.app.data import Example, check_repeated, read_splits
from fedspzo.app.model_files import content_hash
from fedspzo.app.waiting import Count
from fedspzo.errors import InputError

LABELS = ("good", "bad") * 3


def one_file(tmp_path: Path, rows: str, share: float) -> DataConfig:
    (tmp_path / "all.csv").write_text("text,label,who\n" + rows)
    return DataConfig(train=tmp_path / "all.csv", test_share=share)


def test_one_file_is_split_by_seed_and_no_text_is_on_both_sides(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [f"{draw.randrange(60)},{draw.choice(['good', 'bad'])},a" for _ in range(300)]
    data = one_file(tmp_path, "".join(f"{row}\n" for row in rows), 0.25)
    drawn = set()
    for seed in range(5):
        found = read_splits(data, PROMPT, seed)
        train, test = ({one.text for one in part} for part in (found.train, found.test))
        assert not train & test
        assert len(train | test) == 60
        assert 13 <= len(test) <= 17
        assert len(found.train) + len(found.test) == 300
        assert {one.label for one in found.test} == {"good", "bad"}
        assert found.repeated == 0
        assert found == read_splits(data, PROMPT, seed)
        drawn.add(frozenset(test))
    assert len(drawn) == 5
    both = read_splits(replace(data, validation=0.5), PROMPT)
    assert {one.text for one in both.test} == {one.text for one in read_splits(data, PROMPT).test}
    assert not {one.text for one in both.test} & {one.text for one in both.validation}


@pytest.mark.parametrize(
    ("rows", "share", "message"),
    [
        (
            "x,good,a\nx,bad,a\n",
            0.5,
            r"test_share is 0\.5, a share of its 1 texts that leaves none",
        ),
        ("x,good,a\ny,bad,a\n", 0.2, "a share of its 2 texts that leaves none to test by"),
        ("x,good,a\ny,good,b\nz,bad,a\n", 0.4, r"leaves client '[ab]' no examples; give a smaller"),
    ],
)
def test_a_share_that_leaves_nothing_is_refused(
    tmp_path: Path, rows: str, share: float, message: str
) -> None:
    data = replace(one_file(tmp_path, rows, share), client="who")
    faults = []
    for seed in range(8):
        try:
            read_splits(data, PROMPT, seed)
        except InputError as error:
            faults.append(str(error))
    assert faults
    assert all(re.search(message, fault) for fault in faults)


@pytest.mark.parametrize(
    ("key", "remedy"),
    [("test_share", "a file as [data] test"), ("validation", "a file")],
)
def test_a_share_that_takes_all_of_a_client_names_it(tmp_path: Path, key: str, remedy: str) -> None:
    rows = "".join(f"{text},{label},big\n" for text, label in zip("abcdef", LABELS, strict=True))
    (tmp_path / "own.csv").write_text(f"text,label,who\nx,good,small\n{rows}")
    data = splits(tmp_path, "x,good\n", "q,good\n")
    share = {"test": None if key == "test_share" else data.test, key: 0.5}
    data = replace(data, train=tmp_path / "own.csv", client="who", **share)
    faults = set()
    for seed in range(20):
        try:
            assert read_splits(data, PROMPT, seed).owners == ("big", "small")
        except InputError as error:
            faults.add(str(error))
    assert faults == {
        f"{tmp_path / 'own.csv'}: [data] {key} is 0.5, which leaves client 'small' no examples;"
        f" give a smaller share, or {remedy}"
    }


def test_a_field_says_whose_a_row_is(tmp_path: Path) -> None:
    data = splits(tmp_path, "x,good\n", "q,good\n")
    data.train.write_text("text,label,who\na,good,7\nb,bad,ann\nc,bad,7\n")
    found = read_splits(replace(data, client="who"), PROMPT)
    assert [example.client for example in found.train] == ["7", "ann", "7"]
    assert found.owners == ("7", "ann")
    assert not read_splits(data, PROMPT).owners
    data.train.write_text("text,label,who\na,good,\nb,bad,ann\n")
    with pytest.raises(InputError, match="line 2: 'who' is ''; give a client's name"):
        read_splits(replace(data, client="who"), PROMPT)
    data.train.write_text("text,label\na,good\nb,bad\n")
    with pytest.raises(InputError, match=r"field 'who' is missing .*as \[data\] client"):
        read_splits(replace(data, client="who"), PROMPT)


def test_prompt_labels_keep_the_verbalizers_order(tmp_path: Path) -> None:
    data = splits(tmp_path, "x,bad\ny,good\n", "z,good\n")
    assert read_splits(data, PROMPT).labels == ("good", "bad")


def test_head_labels_are_the_training_labels_sorted(tmp_path: Path) -> None:
    data = splits(tmp_path, "x,c\ny,a\nz,b\n", "z,b\n")
    assert read_splits(data, TaskConfig(type="classification")).labels == ("a", "b", "c")


def test_language_modelling_needs_no_labels(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text\nx\n")
    (tmp_path / "test.csv").write_text("text\ny\n")
    data = DataConfig(train=tmp_path / "train.csv", test=tmp_path / "test.csv")
    assert read_splits(data, TaskConfig(type="lm")).train == [Example("x")]


def test_labels_and_verbalizers_must_match(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 3: 'label' is 'odd'; .*\[task\.verbalizers\]"):
        read_splits(splits(tmp_path, "x,good\ny,odd\n", "z,good\n"), PROMPT)
    with pytest.raises(InputError, match="no row has the label 'bad'"):
        read_splits(splits(tmp_path, "x,good\n", "z,good\n"), PROMPT)


def test_head_needs_two_labels_and_no_new_ones_in_the_test_file(tmp_path: Path) -> None:
    head = TaskConfig(type="classification")
    with pytest.raises(InputError, match="every row has the label 'a'"):
        read_splits(splits(tmp_path, "x,a\n", "z,a\n"), head)
    with pytest.raises(InputError, match=r"test\.csv, line 2: 'label' is 'c'; it is not among"):
        read_splits(splits(tmp_path, "x,a\ny,b\n", "z,c\n"), head)


def test_test_texts_that_were_trained_on_are_counted_and_refused(tmp_path: Path) -> None:
    train = "".join(f"{number},{'good' if number % 2 else 'bad'}\n" for number in range(20))
    data = splits(tmp_path, train, "1,good\n" + "".join(f"{n}x,bad\n" for n in range(9)))
    read = read_splits(data, PROMPT)
    assert read.repeated == 1
    check_repeated(data, read)
    data = splits(tmp_path, train, "1,good\n2,good\n" + "".join(f"{n}x,bad\n" for n in range(9)))
    with pytest.raises(InputError, match=r"2 of its 11 texts are also in .*max_repeated.* 0\.1"):
        check_repeated(data, read_splits(data, PROMPT))
    check_repeated(replace(data, max_repeated=0.5), read_splits(data, PROMPT))


def test_the_hashes_are_of_what_was_read(tmp_path: Path) -> None:
    data = splits(tmp_path, "x,good\ny,bad\n", "z,good\n")
    before = {name: content_hash(getattr(data, name).read_bytes()) for name in ("train", "test")}
    assert read_splits(data, PROMPT).hashes == before


def test_rows_are_counted_while_they_are_read(tmp_path: Path) -> None:
    data = splits(tmp_path, "x,good\ny,bad\n", "q,good\n")
    count = Count()
    read_splits(data, PROMPT, 0, count)
    assert str(count) == "3 rows"
