"""One codec for every dataclass in a JSON file: equal values come back, anything else is refused by file and key."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from retipair.runtime.errors import UserError
from retipair.runtime.schema import from_values, to_values


@dataclass(frozen=True)
class Point:
    x: float
    at: Path


@dataclass(frozen=True, kw_only=True)
class Everything:
    name: str
    side: Literal["left", "right"]
    rate: float
    prompts: list[tuple[str, int]]
    matrix: list[list[float]]
    hashes: dict[str, str]
    inliers: int | None
    mixed: str | float
    points: tuple[Point, ...]
    centre: Point | None
    named: dict[str, Point]
    folder: Path | None = None
    dora: bool = False


VALUES: dict[str, Any] = {
    "name": "Auge",
    "side": "left",
    "rate": 1,
    "prompts": [["an eye", 2]],
    "matrix": [[1.0, 2]],
    "hashes": {"a": "b"},
    "inliers": None,
    "mixed": 0.5,
    "points": [{"x": 1, "at": "a"}, {"x": 2, "at": "b"}],
    "centre": {"x": 3, "at": "c"},
    "named": {"d": {"x": 4, "at": "d"}},
    "folder": "pairs",
    "dora": True,
}


def read(values: Any) -> Everything:
    return from_values(Everything, values, "a.json, line 3", "make it again")


def test_values_come_back() -> None:
    value = read(VALUES)
    assert value.prompts == [("an eye", 2)]
    assert value.folder == Path("pairs")
    assert value.points == (Point(1, Path("a")), Point(2, Path("b")))
    assert (value.centre, value.named) == (Point(3, Path("c")), {"d": Point(4, Path("d"))})
    assert json.loads(json.dumps(asdict(value), default=str)) == VALUES


class Line(msgspec.Struct, frozen=True, kw_only=True):
    side: Literal["left", "right"] = "left"
    size: Annotated[int, msgspec.Meta(ge=1)]
    points: list[Annotated[list[float], msgspec.Meta(max_length=2)]] | None = None


def test_structs_are_read_as_dataclasses_are() -> None:
    assert from_values(Line, {"size": 3, "points": [[1, 2.5]]}, "here") == Line(size=3, points=[[1, 2.5]])
    for values, said in [
        ({}, "key 'size' is missing"),
        ({"size": 3, "colour": 1}, "unknown key 'colour'"),
        ({"size": "3"}, 'size cannot be "3"'),
        ({"size": 3, "side": "top"}, 'side cannot be "top" (use left, right)'),
        ({"size": 3, "points": [["1"]]}, "points cannot be"),
    ]:
        with pytest.raises(UserError, match=rf"here: {re.escape(said)}"):
            from_values(Line, values, "here")


def test_a_field_with_a_default_may_be_missing() -> None:
    value = read({key: VALUES[key] for key in VALUES if key not in ("folder", "dora")})
    assert (value.folder, value.dora) == (None, False)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": 3}, "name cannot be 3"),
        ({"name": "\ud800"}, "name cannot be"),
        ({"side": "up"}, 'side cannot be "up" (use left, right)'),
        ({"rate": True}, "rate cannot be true"),
        ({"rate": float("inf")}, "rate cannot be Infinity"),
        ({"prompts": [["an eye"]]}, 'prompts cannot be [["an eye"]]'),
        ({"prompts": [[1, 1]]}, "prompts cannot be"),
        ({"matrix": [1.0]}, "matrix cannot be [1.0]"),
        ({"hashes": {"a": 1}}, "hashes cannot be"),
        ({"inliers": 2**63}, "inliers cannot be"),
        ({"mixed": None}, "mixed cannot be null"),
        ({"points": [{"x": 1, "at": "a"}, {"x": "1", "at": "a"}]}, 'points: x cannot be "1"'),
        ({"points": {}}, "points cannot be {}"),
        ({"centre": {"x": 1}}, "centre: key 'at' is missing"),
        ({"named": {"d": 1}}, "named cannot be"),
        ({"folder": 5}, "folder cannot be 5"),
        ({"dora": 1}, "dora cannot be 1"),
    ],
)
def test_a_value_of_another_type_is_named(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as error:
        read(VALUES | change)
    assert str(error.value).startswith(f"a.json, line 3: {problem}")
    assert str(error.value).endswith("; make it again")


def test_keys_that_are_unknown_or_missing_are_named() -> None:
    with pytest.raises(UserError, match="a.json, line 3: unknown key 'more'"):
        read(VALUES | {"more": 1})
    with pytest.raises(UserError, match="a.json, line 3: key 'side' is missing; make it again"):
        read({key: VALUES[key] for key in VALUES if key != "side"})
    with pytest.raises(UserError, match="a.json, line 3: not a JSON object; make it again"):
        read([])


@dataclass(frozen=True)
class Row:
    name: str
    similarity: float | None = field(metadata={"json": "likeness"})
    metrics: dict[str, float] = field(metadata={"prefix": "metric."})


@dataclass(frozen=True)
class Table:
    rows: tuple[Row, ...]
    by_name: dict[str, Row | None]
    kind: Literal["a", "b"] = "a"
    path: Path | None = None


TABLE = Table((Row("x", None, {"p": 1.5, "q": 2}),), {"y": Row("y", 0.5, {}), "z": None}, "b", Path("folder"))
TABLE_VALUES: dict[str, Any] = {
    "rows": [{"name": "x", "likeness": None, "metric.p": 1.5, "metric.q": 2}],
    "by_name": {"y": {"name": "y", "likeness": 0.5}, "z": None},
    "kind": "b",
    "path": "folder",
}


def test_nested_dataclasses_survive_json() -> None:
    assert to_values(TABLE) == TABLE_VALUES
    assert from_values(Table, json.loads(json.dumps(TABLE_VALUES)), "here") == TABLE
    assert from_values(Table, {"rows": [], "by_name": {}}, "here") == Table((), {})


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"name": "x"}, "key 'likeness' is missing"),
        ({"name": "x", "likeness": True}, "likeness cannot be true"),
        ({"name": "x", "likeness": 1, "metric.p": "1"}, "metrics cannot be"),
        ({"name": "x", "likeness": 1, "p": 1}, "unknown key 'p'"),
    ],
)
def test_errors_name_the_key_of_the_file(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=f"^here: rows: {problem}"):
        from_values(Table, TABLE_VALUES | {"rows": [row]}, "here")
