"""Queries per picture: what is understood, and mistakes with their lines, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from self1e.errors import SettingError
from self1e.inference.tables import read_table


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.csv", 'image,query\na/x.jpg,the cup\nb.jpg,"one, two"\n\na/x.jpg, a dog \n'),
        ("q.CSV", '\ufeffid;Query;Image\r\n1;the cup;a/x.jpg\r\n2;"one, two";b.jpg\r\n3;a dog;a/x.jpg\r\n'),
        ("q.tsv", "image\tquery\na/x.jpg\tthe cup\nb.jpg\tone, two\na/x.jpg\ta dog\na/x.jpg\tthe cup"),
        (
            "q.jsonl",
            '{"image": "a/x.jpg", "queries": ["the cup", "a dog"], "id": 7}\n\n{"image": "b.jpg", "query": "one, two"}',
        ),
    ],
)
def test_every_form_says_the_same(tmp_path: Path, name: str, text: str) -> None:
    table = read_table(write(tmp_path, name, text))
    assert table.queries == {tmp_path / "a" / "x.jpg": ("the cup", "a dog"), tmp_path / "b.jpg": ("one, two",)}


def test_paths_may_be_absolute_or_lead_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    elsewhere = Path("/far/x.jpg").absolute()
    table = read_table(write(tmp_path / "sub", "q.csv", f"image,query\n../x.jpg,cup\n{elsewhere},cup\n"))
    assert list(table.queries) == [tmp_path / "x.jpg", elsewhere]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("q.csv", "picture,query\nx.jpg,cup\n", "1 mistake: line 1: the header is 'picture,query'"),
        ("q.csv", "", "line 1: the header is ''"),
        ("q.csv", "image,query\n", "holds no query"),
        ("q.csv", "image,query\nx.jpg,cup, red\n", "line 2: 3 fields, the header has 2: put a query with a separator"),
        ("q.csv", "image,query\nx.jpg\n", "line 2: 1 fields, the header has 2."),
        ("q.csv", 'image,query\nx.jpg,"cup\n', "line 2: is not CSV"),
        ("q.csv", "image,query\n ,cup\nx.jpg, \n", "2 mistakes: line 2: the image is empty; line 3: "),
        ("q.jsonl", '[{"image": "x.jpg",\n"query": "cup"}]', "line 1: is not JSON: .*one object per line is expected"),
        ("q.jsonl", '["x.jpg", "cup"]', "line 1: is a JSON list"),
        (
            "q.jsonl",
            '{"query": "cup"}\n{"image": 7, "query": "cup"}',
            "line 1: image is missing; line 2: image is number",
        ),
        ("q.jsonl", '{"image": "x.jpg"}', "line 1: query is missing"),
        ("q.jsonl", '{"image": "x.jpg", "query": "a", "queries": ["b"]}', "line 1: has both query and queries"),
        ("q.jsonl", '{"image": "x.jpg", "queries": []}', r"line 1: queries is \[\], expected a list of words"),
        ("q.jsonl", '{"image": "x.jpg", "query": ["a"]}', r'line 1: query is \["a"\], expected words'),
        ("q.txt", "cup", "expected a name that ends in .csv"),
    ],
)
def test_mistakes_are_told_with_their_lines(tmp_path: Path, name: str, text: str, told: str) -> None:
    with pytest.raises(SettingError, match=told) as caught:
        read_table(write(tmp_path, name, text))
    assert str(tmp_path / name) in str(caught.value)


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"30 mistakes: line 2: .*; and 10 more") as caught:
        read_table(write(tmp_path, "q.csv", "image,query\n" + "x.jpg\n" * 30))
    assert "line 21:" in str(caught.value)
    assert "line 22:" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"is not UTF-8 \(byte 18\)"):
        read_table(write(tmp_path, "q.csv", "image,query\nx.jpg,é\n", "cp1252"))
    with pytest.raises(SettingError, match="cannot be read: No such file"):
        read_table(tmp_path / "missing.csv")
