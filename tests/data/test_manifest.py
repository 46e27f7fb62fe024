"""The manifest is the contract: what was written is read back, and what does not belong is refused."""

import cProfile
import json
import pstats
from contextlib import nullcontext
from pathlib import Path

import pytest
from msgspec.structs import replace

from conftest import prepared_record
from refusals import raises_file
from retipair.data import manifest
from retipair.data.manifest import (
    GeneratedPair,
    PreparedPair,
    Record,
    decode_plain,
    parse_checked,
    parse_line,
    read_manifest,
    to_line,
    values_of,
    write_manifest,
)
from retipair.runtime.atomic_io import append_line
from retipair.runtime.errors import MissingError, UserError

PREPARED = replace(
    prepared_record("001", "train", "Auge, früh: “arteriovenös”\nzweite Zeile"),
    patient="p1",
    points=[[1.5, 2.0, 1.25, 2.5]],
    inliers=18,
    residual_px=1.75,
    native_size=[300, 250],
    raw_sizes=[[640, 480], [512, 512]],
    raw_cf_to_cf=[[1.7, 0, -8.5], [0, 1.7, -3], [0, 0, 1]],
)
GENERATED = GeneratedPair(
    id="7",
    index=7,
    seed=3,
    attempt=0,
    mode="from_data",
    source_id="001",
    source_eye="patient 1",
    strength=0.6,
    prompt="眼",
    cf="7/cf.png",
    fa="7/fa.png",
    size=128,
    base="base",
    adapter_sha256="a",
    settings_sha256="b",
    fa_chroma=0.25,
    consistency=0.125,
)
SCHEMA = {
    "prepared": "schema id eye patient split cf fa mask size caption source_sha256 fa_to_cf points inliers residual_px "
    "consistency_before consistency native_size raw_sizes raw_cf_to_cf",
    "generated": "schema id index seed attempt mode source_id source_eye strength prompt cf fa size base "
    "adapter_sha256 settings_sha256 fa_chroma consistency",
}


def write_lines(folder: Path, *lines: str) -> Path:
    (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def changed(record: Record, **values: object) -> str:
    return json.dumps({**values_of(record), **values}) + "\n"


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    records = [PREPARED, replace(PREPARED, id="002", points=[], inliers=None, residual_px=None), GENERATED]
    write_manifest(tmp_path, records)
    assert list(read_manifest(tmp_path)) == records
    append_line(tmp_path / "manifest.jsonl", to_line(replace(GENERATED, id="8", index=8)))
    assert list(read_manifest(tmp_path)) == [*records, replace(GENERATED, id="8", index=8)]
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.jsonl"]


@pytest.mark.parametrize(("record", "kind"), [(PREPARED, "prepared"), (GENERATED, "generated")])
def test_a_line_has_the_keys_of_the_schema_in_its_order(record: Record, kind: str) -> None:
    assert list(json.loads(to_line(record))) == SCHEMA[kind].split()


def test_equal_records_make_equal_bytes(tmp_path: Path) -> None:
    write_manifest(tmp_path, [PREPARED, GENERATED])
    first = (tmp_path / "manifest.jsonl").read_bytes()
    write_manifest(tmp_path, [PREPARED, GENERATED])
    assert (tmp_path / "manifest.jsonl").read_bytes() == first


@pytest.mark.parametrize("key", ["cf", "fa", "mask"])
@pytest.mark.parametrize("path", ["../elsewhere.png", "/etc/passwd", "cf/../../x.png", "..\\x.png"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, key: str, path: str) -> None:
    write_lines(tmp_path, to_line(PREPARED), changed(PREPARED, **{key: path}))
    with pytest.raises(UserError, match=r"manifest\.jsonl, line 2: .*is outside"):
        list(read_manifest(tmp_path))


INVALID = [
    (changed(PREPARED, note="x"), "unknown key 'note'"),
    (json.dumps({k: v for k, v in values_of(PREPARED).items() if k != "eye"}) + "\n", "'eye' is missing"),
    (changed(PREPARED, schema="retipair.prepared/99"), "unknown schema"),
    (changed(PREPARED, split="valid"), 'split cannot be "valid" (use train, val, test)'),
    (to_line(PREPARED), "duplicate id '001'"),
    (changed(PREPARED, id=["003"]), 'id cannot be ["003"]'),
    (changed(PREPARED, id=3), "id cannot be 3"),
    (changed(PREPARED, id="\x1b[2J"), "id has unprintable characters"),
    (changed(GENERATED, source_id="a\nb"), "source_id has unprintable characters"),
    (changed(PREPARED, cf=None), "cf cannot be null"),
    (changed(PREPARED, caption=5), "caption cannot be 5"),
    (changed(PREPARED, size=128.0), "size cannot be 128.0"),
    (changed(PREPARED, inliers=True), "inliers cannot be true"),
    (changed(PREPARED, points=[["1", 2]]), "points cannot be"),
    (changed(PREPARED, fa_to_cf=[[1.0]]), "fa_to_cf must be 3 x 3 numbers"),
    (changed(PREPARED, raw_cf_to_cf=[[1, 0], [0, 1], [0, 0]]), "raw_cf_to_cf must be 3 x 3 numbers"),
    (changed(PREPARED, raw_sizes=[[1, 2, 3], [4, 5, 6]]), "raw_sizes must be 2 x 2 numbers"),
    (changed(PREPARED, points=[[1, 2, 3, 4], [5, 6, 7]]), "points must be rows of 4 numbers"),
    (changed(GENERATED, source_to_pair=[]), "source_to_pair must be 3 x 3 numbers"),
    (changed(PREPARED, consistency=float("nan")), "consistency cannot be NaN"),
    (changed(GENERATED, mode="dream"), 'mode cannot be "dream"'),
    ("[]\n", "unknown schema"),
    ("\n", "not JSON"),
    ("{torn\n", "not JSON"),
]


@pytest.mark.parametrize(("line", "said"), INVALID)
def test_a_line_that_is_not_ours_is_refused_with_its_number(tmp_path: Path, line: str, said: str) -> None:
    write_lines(tmp_path, to_line(PREPARED), to_line(replace(PREPARED, id="002")), line)
    with pytest.raises(UserError, match=r"manifest\.jsonl, line 3: ") as error:
        list(read_manifest(tmp_path))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("record", "old", "new"),
    [
        (PREPARED, '"split": "train"', '"split": "valid"'),
        (PREPARED, '"size": 128', '"size": 128.0'),
        (PREPARED, '"size": 128', f'"size": {2**63}'),
        (PREPARED, '"size": 128', '"size": true'),
        (PREPARED, '"size": 128', '"note": 1, "size": 128'),
        (PREPARED, '"size": 128, ', ""),
        (PREPARED, '"raw_sizes": [[640, 480], [512, 512]]', '"raw_sizes": [[640, 480]]'),
        (PREPARED, "[[1.5, 2.0, 1.25, 2.5]]", "[[1.5, 2.0, 1.25]]"),
        (PREPARED, "[[1.7, 0, -8.5], [0, 1.7, -3], [0, 0, 1]]", "[[1.7, 0, -8.5], [0, 1.7, -3]]"),
        (PREPARED, '"residual_px": 1.75', '"residual_px": NaN'),
        (PREPARED, '"cf/001.png"', '"/cf/001.png"'),
        (PREPARED, '"cf/001.png"', '"../cf/001.png"'),
        (GENERATED, '"mode": "from_data"', '"mode": "dream"'),
        (GENERATED, '"source_id": "001"', '"source_id": "a\x7fb"'),
        (GENERATED, '"source_id": "001"', '"source_id": "a\tb"'),
        (PREPARED, '"id": "001"', '"id": "\u200b"'),
        (GENERATED, '"consistency": 0.125}', '"consistency": 0.125, "schema": "retipair.generated/9"}'),
        (GENERATED, '"consistency": 0.125}', '"consistency": 0.125, "modalities": ["cf", "cf"]}'),
        (GENERATED, '"consistency": 0.125}', '"consistency": 0.125} {}'),
    ],
)
def test_the_fast_decoder_leaves_invalid_lines_to_the_one_with_messages(record: Record, old: str, new: str) -> None:
    line = to_line(replace(record, caption="Auge") if isinstance(record, PreparedPair) else record)
    assert decode_plain([line]) is not None
    assert old in line
    assert decode_plain([line, line.replace(old, new)]) is None
    with pytest.raises(UserError, match="here: "):
        parse_line(line.replace(old, new), "here")


@pytest.mark.parametrize(
    "record",
    [
        replace(PREPARED, caption="früh: “arteriovenös”"),
        replace(PREPARED, caption=None, native_size=None, mode="from_data", fa_to_cf=[[1, 0, 2], [0, 1, 3], [0, 0, 1]]),
        replace(PREPARED, caption=None, modalities=["red_free", "octa"], vessels=["dark", "bright"]),
        GENERATED,
        replace(GENERATED, mode="cf2fa", strength=None, source_size=[2**40, 9], source_to_pair=[[1.5, 0, 0]] * 3),
    ],
)
def test_both_decoders_read_the_same_record(record: Record) -> None:
    for line in (to_line(record), to_line(record).strip(), to_line(record).replace(", ", ",\t")):
        assert parse_line(line, "here") == record
    assert decode_plain([to_line(record)]) == [parse_checked(to_line(record), "here")] == [record]


@pytest.mark.parametrize("records", [[GENERATED], [PREPARED, GENERATED, PREPARED], [GENERATED, PREPARED]])
def test_both_decoders_read_several_records(records: list[Record]) -> None:
    lines = [to_line(replace(record, caption="früh") if record is PREPARED else record) for record in records]
    assert decode_plain(lines) == [parse_checked(line, "here") for line in lines]


def test_both_decoders_read_integers_in_fields_of_floats_as_floats() -> None:
    line = changed(replace(PREPARED, caption=None), consistency=1, points=[[1, 2, 3, 4]], residual_px=10**30)
    for record in (*(decode_plain([line]) or []), parse_checked(line, "here")):
        assert isinstance(record, PreparedPair)
        numbers = [record.consistency, record.residual_px, *record.points[0], *record.fa_to_cf[0]]
        assert {type(number) for number in numbers} == {float}


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        ([to_line(GENERATED).strip() + to_line(replace(GENERATED, id="8")), "\n"], 1),
        (["\n", to_line(GENERATED).strip() + to_line(replace(GENERATED, id="8"))], 1),
        ([*to_line(GENERATED).replace(", ", ",\n", 1).splitlines(True), to_line(replace(GENERATED, id="8"))], 1),
        ([to_line(GENERATED), " \n", to_line(replace(GENERATED, id="8"))], 2),
    ],
    ids=["two, none", "none, two", "one on two lines", "an empty line between"],
)
def test_each_line_has_one_record(tmp_path: Path, lines: list[str], number: int) -> None:
    write_lines(tmp_path, *lines)
    with pytest.raises(UserError, match=rf"line {number}: not JSON"):
        list(read_manifest(tmp_path))


@pytest.mark.parametrize("invalid", [False, True])
def test_lines_that_need_a_check_are_found_in_any_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invalid: bool
) -> None:
    monkeypatch.setattr(manifest, "_BLOCK", 2000)
    records = [replace(GENERATED, id=str(number), prompt="a \\ b" if number == 41 else "a") for number in range(60)]
    lines = [to_line(record) for record in records]
    if invalid:
        lines[50] = changed(records[50], size="1")
    write_lines(tmp_path, *lines)
    found: list[Record] = []
    with pytest.raises(UserError, match="line 51: size") if invalid else nullcontext():
        found.extend(read_manifest(tmp_path))
    assert found == records[: 50 if invalid else 60]


def test_no_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with raises_file(tmp_path, MissingError):
        list(read_manifest(tmp_path))


def test_a_torn_last_line_is_refused_too(tmp_path: Path) -> None:
    write_lines(tmp_path, to_line(GENERATED), to_line(replace(GENERATED, id="8", index=8))[:40])
    with pytest.raises(UserError, match="line 2"):  # a reader of finished folders does not look away
        list(read_manifest(tmp_path))


def test_not_a_number_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_manifest(tmp_path, [replace(PREPARED, consistency=float("nan"))])
    assert not (tmp_path / "manifest.jsonl").exists()


def test_views_of_a_line_are_found_from_the_manifest(prepared: Path) -> None:
    for record in read_manifest(prepared):
        assert isinstance(record, PreparedPair)
        assert all((prepared / path).is_file() for path in (record.cf, record.fa, record.mask))


@pytest.mark.parametrize(
    "record", [replace(PREPARED, points=[[1.5, 2.0, 1.25, 2.5]] * 18, caption="Auge, früh"), GENERATED]
)
def test_a_line_is_read_with_few_calls(tmp_path: Path, record: Record) -> None:
    """A manifest may have 1,000,000 lines: types are not looked at again for each of their values."""
    write_manifest(tmp_path, (replace(record, id=str(number)) for number in range(200)))
    list(read_manifest(tmp_path))
    with cProfile.Profile() as profile:
        list(read_manifest(tmp_path))
    assert pstats.Stats(profile).total_calls < 15 * 200


@pytest.mark.parametrize("key", ["id", "eye", "caption", "cf"])
@pytest.mark.parametrize("value", [rb"a\ud800", b"a\xff", b"a\xed\xa0\x80"], ids=["lone surrogate", "latin-1", "CESU"])
def test_text_that_no_file_can_hold_is_refused_by_its_line(tmp_path: Path, key: str, value: bytes) -> None:
    line = changed(PREPARED, **{key: "HERE"}).encode().replace(b"HERE", value)
    (tmp_path / "manifest.jsonl").write_bytes(line)
    with pytest.raises(UserError, match=rf"line 1: {key} cannot be"):
        list(read_manifest(tmp_path))
