import unicodedata
from pathlib import Path

import pytest

from refusals import raises_file
from retipair.data.sources import find_pairs, scan_pairs
from retipair.runtime.errors import DamagedError, MissingError, UserError


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def _ids(root: Path) -> list[str]:
    return [pair.id for pair in find_pairs(root)]


def test_the_original_layout(tmp_path):
    _touch(tmp_path, "024/024_01.png", "024/024_02.png", "024/024_01.txt", "024/024_02.txt")
    _touch(tmp_path, "007/007_01.JPG", "007/007_02.tif", "README.md", ".DS_Store")
    first, second = find_pairs(tmp_path)
    assert (first.id, first.cf.name, first.fa.name, first.cf_points) == ("007", "007_01.JPG", "007_02.tif", None)
    assert second.cf_points == tmp_path / "024/024_01.txt"
    assert second.fa_points == tmp_path / "024/024_02.txt"


def test_the_original_layout_flat(tmp_path):
    _touch(tmp_path, "a_01.png", "a_02.png", "b_1_01.bmp", "b_1_02.bmp", "a_01.txt", "a_02.txt")
    assert _ids(tmp_path) == ["a", "b_1"]


def test_two_parallel_folders(tmp_path):
    _touch(tmp_path, "cf/x.png", "fa/x.jpg", "cf/y.png", "fa/y.png", "cf/x.txt", "fa/x.txt")
    x, y = find_pairs(tmp_path)
    assert (x.fa, x.fa_points) == (tmp_path / "fa/x.jpg", tmp_path / "fa/x.txt")
    assert y.cf_points is None


@pytest.mark.parametrize(("cf", "fa"), [("CF", "FA"), ("Cf", "Fa"), ("cfs", "fas"), ("CFs", "fa")])
def test_two_parallel_folders_in_other_spellings(tmp_path, cf, fa):
    _touch(tmp_path, f"{cf}/x.png", f"{fa}/x.png")
    (pair,) = find_pairs(tmp_path)
    assert (pair.cf, pair.fa) == (tmp_path / cf / "x.png", tmp_path / fa / "x.png")


def test_tables_and_parallel_folders_name_their_views_and_numbers_do_not(tmp_path):
    _touch(tmp_path, "folders/cf/x.png", "folders/fa/x.png", "numbers/x_01.png", "numbers/x_02.png")
    _touch(tmp_path, "isfahan/NORMAL/1.jpg", "isfahan/NORMAL/1-1.jpg")
    (tmp_path / "t.csv").write_text("cf,fa\nfolders/cf/x.png,folders/fa/x.png\n")
    named = {name: find_pairs(tmp_path / name)[0].views_named for name in ("folders", "t.csv", "numbers", "isfahan")}
    assert named == {"folders": True, "t.csv": True, "numbers": False, "isfahan": False}


def test_the_isfahan_folders_name_their_views_crosswise(tmp_path):
    _touch(tmp_path, "ABNORMAL/1.jpg", "ABNORMAL/1-1.jpg", "NORMAL/1.jpg", "NORMAL/1-1.jpg")
    abnormal, normal = find_pairs(tmp_path)
    assert (abnormal.id, abnormal.cf.name, abnormal.fa.name) == ("abnormal_1", "1.jpg", "1-1.jpg")
    assert (normal.id, normal.cf.name, normal.fa.name) == ("normal_1", "1-1.jpg", "1.jpg")


def test_a_csv_table(tmp_path):
    _touch(tmp_path, "in/one_01.png", "in/two.png", "in/three.txt")
    text = "\ufeffcf,fa,cf_points,fa_points,eye,patient,split,caption\r\n"
    text += 'in/one_01.png,in/two.png,in/three.txt,in/three.txt,OD,7,validation,"mild, early"\r\n'
    (tmp_path / "pairs.csv").write_bytes(text.encode())
    (pair,) = find_pairs(tmp_path / "pairs.csv")
    assert (pair.id, pair.cf, pair.split, pair.caption) == (
        "one", tmp_path / "in/one_01.png", "val", "mild, early",
    )  # fmt: skip
    assert (pair.eye, pair.patient, pair.cf_points) == ("OD", "7", tmp_path / "in/three.txt")


def test_a_jsonl_table(tmp_path):
    _touch(tmp_path, "a.png", "b.png")
    (tmp_path / "pairs.jsonl").write_text('{"id": 5, "cf": "a.png", "fa": "b.png", "eye": 0, "caption": null}\n\n')
    (pair,) = find_pairs(tmp_path / "pairs.jsonl")
    assert (pair.id, pair.eye, pair.caption) == ("5", "0", None)


def test_a_line_of_jsonl_ends_where_the_file_says(tmp_path):
    _touch(tmp_path, "a.png", "b.png")
    (tmp_path / "t.jsonl").write_text(
        '{"cf": "a.png", "fa": "b.png", "caption": "mild\u2028early"}\n', encoding="utf-8"
    )
    assert [pair.caption for pair in find_pairs(tmp_path / "t.jsonl")] == ["mild\u2028early"]


def test_a_quoted_cell_may_hold_what_ends_lines(tmp_path):
    _touch(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_text('cf,fa,caption\na.png,b.png,"mild\u2028\n""early"""\n', encoding="utf-8")
    assert [pair.caption for pair in find_pairs(tmp_path / "t.csv")] == ['mild\u2028\n"early"']


def test_point_files_may_be_named_in_capitals(tmp_path):
    _touch(tmp_path, "a_01.PNG", "a_02.png", "a_01.TXT", "a_02.TXT")
    (pair,) = find_pairs(tmp_path)
    assert [path.name.upper() for path in pair.files] == ["A_01.PNG", "A_02.PNG", "A_01.TXT", "A_02.TXT"]


def test_a_prepared_folder_is_not_raw(tmp_path):
    _touch(tmp_path, "cf/a.png", "fa/a.png", "manifest.jsonl")
    with raises_file(tmp_path):
        find_pairs(tmp_path)


def test_eyes_csv_says_which_pairs_show_one_eye(tmp_path):
    _touch(tmp_path, "a_01.png", "a_02.png", "b_01.png", "b_02.png")
    (tmp_path / "eyes.csv").write_text("id,eye,patient,split\na,L,p1,train\nb,R,p1,train\n")
    a, b = find_pairs(tmp_path)
    assert (a.eye, a.patient, a.split) == ("L", "p1", "train")
    assert b.eye == "R"


FLAT = ("a_01.png", "a_02.png")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "no images in a supported layout"),
        (("a_01.png",), "its partner a_02 is missing"),
        (("b/b_02.png",), "its partner b_01 is missing"),
        (("cf/a.png", "fa/b.png"), "its partner fa/a is missing"),
        (("cf/readme.md", "fa/readme.md"), "hold no images"),
        (("cf/a.png",), "cf: fa/ is missing beside it"),
        (("CF/a.png", "notes.txt"), "CF: fa/ is missing"),
        (("cfs/a_01.png", "cfs/a_02.png"), "cfs: fa/ is missing"),
        (("Fa/a.png",), "Fa: cf/ is missing"),
        (("FAs/a.png", "fundus/a.png"), "FAs: cf/ is missing"),
        (("cf/a.png", "CF/a.png", "fa/a.png"), "exists too; put all CF into one"),
        (("cf/a.png", "cfs/a.png", "fa/a.png"), "exists too; put all CF into one"),
        (("ABNORMAL/1.jpg",), "its partner 1-1 is missing"),
        (("NORMAL/readme.md",), "no images in it"),
        ((*FLAT, "holiday.png"), "neither ID_01"),
        ((*FLAT, "a_01.jpg"), "the same view as"),
        ((*FLAT, "a/a_01.png", "a/a_02.png"), "'a' occurs more than once"),
        ((*FLAT, "holiday.png", "b/beach.png"), "1 more pair or image cannot be used"),
        (("a b_01.png", "a b_02.png"), "not a safe file name"),
        ((*FLAT, "a_01.txt"), "the other view has no points"),
    ],
)
def test_folders_that_cannot_work_say_why(tmp_path, files, said):
    _touch(tmp_path, *files)
    with pytest.raises(UserError, match=said) as caught:
        find_pairs(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,eye\na,1\na,2\n", "duplicate id"),
        ("id,eye\na,1\nz,2\n", "no pair has id 'z'"),
        ("id,eye\n", "no lines"),
        ("id,eye,side\na,1,2\n", "unknown column 'side'"),
        ("id,eye\na,\n", "eye is missing"),
        ("id,eye,split\na,1,holdout\n", "unknown split 'holdout'"),
        ("id,eye\na,1,2,3\n", "4 cells for 2 columns"),
        ("id,eye,patient\na,1,P\u3000Q\n", "line 2: .* cannot be printed"),
    ],
)
def test_an_eyes_table_that_cannot_work_says_why(tmp_path, text, said):
    _touch(tmp_path, *FLAT)
    (tmp_path / "eyes.csv").write_text(text, "utf-8")
    with pytest.raises(UserError, match=said):
        find_pairs(tmp_path)


def test_an_eyes_table_must_know_every_pair(tmp_path):
    _touch(tmp_path, *FLAT, "b_01.png", "b_02.png")
    (tmp_path / "eyes.csv").write_text("id,eye\na,1\n")
    with raises_file(tmp_path / "eyes.csv"):
        find_pairs(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "cf,fa\na.png,\n", "fa is missing"),
        ("t.csv", "cf,fa\na.png,gone.png\n", "gone.png does not exist"),
        ("t.csv", "cf,fa,colour\na.png,a.png,red\n", "unknown column 'colour'"),
        ("t.csv", "id,cf,fa\nx,a.png,a.png\nX,a.png,a.png\n", "id 'x' differs from 'X' only in case"),
        ("t.csv", "id,cf,fa\n../x,a.png,a.png\n", "not a safe file name"),
        ("t.csv", "", "no lines"),
        ("t.csv", 'cf,fa,caption\na.png,a.png,x\na.png,a.png,"y\na.png,a.png,z\n', "line 3: not CSV"),
        ("t.csv", "cf,fa,FA\na.png,a.png,a.png\n", "column 'fa' occurs more than once"),
        ("t.jsonl", '{"cf": "a.png", "fa": "a.png", "caption": 5}', "line 1: caption is not text"),
        ("t.jsonl", '{"cf": "a.png", "fa": ["a.png"]}', "line 1: fa is not text"),
        ("t.jsonl", "{", "not JSON"),
        ("t.jsonl", "[1]", "not an object"),
        ("t.xlsx", "", "unknown table format"),
    ],
)
def test_a_table_that_cannot_work_says_why(tmp_path, name, text, said):
    _touch(tmp_path, "a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        find_pairs(tmp_path / name)
    assert name in str(caught.value) or "a.png" in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with raises_file(tmp_path / "gone", MissingError):
        find_pairs(tmp_path / "gone")


# Names: macOS decomposes characters (NFD), most other programs compose them (NFC)

FORMS = ("NFC", "NFD")
LAYOUTS = {
    "flat": ("José_01.png", "José_02.png", "José_01.txt", "José_02.txt"),
    "folders": ("José/José_01.png", "José/José_02.png", "José/José_01.txt", "José/José_02.txt"),
    "parallel": ("cf/José.png", "fa/José.png", "cf/José.txt", "fa/José.txt"),
    "isfahan": ("ABNORMAL/José.png", "ABNORMAL/José-José.png", "ABNORMAL/José.txt", "ABNORMAL/José-José.txt"),
}


def _in_form(form: str, *texts: str) -> list[str]:
    return [unicodedata.normalize(form, text) for text in texts]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("images", "points", "table"), [(a, b, c) for a in FORMS for b in FORMS for c in FORMS])
def test_names_that_differ_in_normalisation_are_one(tmp_path, layout, images, points, table):
    cf, fa, *texts = LAYOUTS[layout]
    _touch(tmp_path, *_in_form(images, cf, fa), *_in_form(points, *texts))
    name = "abnormal_José" if layout == "isfahan" else "José"
    text = f"id,eye,patient\n{name},{name},{name}\n"
    (tmp_path / "eyes.csv").write_text(unicodedata.normalize(table, text), encoding="utf-8")
    if layout == "folders" and images != points:  # two folders, on Linux
        return
    (pair,) = find_pairs(tmp_path)
    assert [pair.id, pair.eye, pair.patient] == _in_form("NFC", name) * 3
    assert pair.files == [tmp_path / one for one in (*_in_form(images, cf, fa), *_in_form(points, *texts))]
    assert all(path.is_file() for path in pair.files)


@pytest.mark.parametrize(("folder", "file", "table"), [(a, b, c) for a in FORMS for b in FORMS for c in FORMS])
def test_files_of_a_table_are_found_under_their_own_spelling(tmp_path, folder, file, table):
    (place,), names = _in_form(folder, "Zoë"), _in_form(file, "José_01.png", "José_02.png")
    _touch(tmp_path / place, *names)
    text = "cf,fa,caption\nZoë/José_01.png,Zoë/José_02.png,café\n"
    (tmp_path / "t.csv").write_text(unicodedata.normalize(table, text), encoding="utf-8")
    (pair,) = find_pairs(tmp_path / "t.csv")
    assert [pair.cf, pair.fa] == [tmp_path / place / name for name in names]
    assert [pair.id, pair.caption] == _in_form("NFC", "José", "café")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("é_01.png", "é_02.png"), "composed and decomposed"),
        (("cf/é.png", "fa/é.png"), "composed and decomposed"),
        (("NORMAL/é.png", "NORMAL/é-é.png"), "composed and decomposed"),
        (("é/é_01.png", "é/é_02.png"), "occurs more than once"),
    ],
)
def test_two_names_that_differ_in_normalisation_alone_are_refused(tmp_path, names, said):
    for form in FORMS:
        _touch(tmp_path, *_in_form(form, *names))
    with pytest.raises(UserError, match=said):
        find_pairs(tmp_path)


def test_a_name_of_a_table_that_two_files_have_is_refused(tmp_path):
    mixed = f"{unicodedata.normalize('NFC', 'é')}{unicodedata.normalize('NFD', 'é')}.png"
    _touch(tmp_path, "a.png", *_in_form("NFC", mixed), *_in_form("NFD", mixed))
    (tmp_path / "t.csv").write_text(f"cf,fa\na.png,{mixed}\n", encoding="utf-8")
    with raises_file(tmp_path / mixed):
        find_pairs(tmp_path / "t.csv")


# Folders and files that are no patient's

OF_SYSTEMS = ("@eaDir", "#recycle", "#Recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__MACOSX")


@pytest.mark.parametrize("name", [*OF_SYSTEMS, ".Trash-1000"])
def test_folders_of_systems_are_not_looked_into(tmp_path, name):
    _touch(tmp_path, "a/a_01.png", "a/a_02.png", f"{name}/b_01.png", f"{name}/deleted.png", f"a/{name}/c_01.png")
    pairs, unusable = scan_pairs(tmp_path)
    assert ([pair.id for pair in pairs], unusable) == (["a"], [])


@pytest.mark.parametrize(
    "contents", [(), ("readme.md",), ("Thumbs.db", "desktop.ini", "~$eyes.xlsx"), ("deeper/a.png",)]
)
def test_a_folder_without_images_is_no_reason_to_stop(tmp_path, contents):
    _touch(tmp_path, *FLAT, *(f"notes/{name}" for name in contents))
    (tmp_path / "notes").mkdir(exist_ok=True)
    pairs, (unusable,) = scan_pairs(tmp_path)
    assert _ids(tmp_path) == ["a"] == [pair.id for pair in pairs]
    assert (unusable.id, unusable.empty) == ("notes", True)


def test_a_folder_without_images_that_eyes_csv_names_is(tmp_path):
    _touch(tmp_path, *FLAT)
    (tmp_path / "b").mkdir()
    (tmp_path / "eyes.csv").write_text("id,eye\na,1\nb,2\n")
    with pytest.raises(UserError, match="b: no images in it"):
        find_pairs(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    _touch(tmp_path, *FLAT, "b/b_01.png", "b/b_02.png", "lost+found/x")
    listed = Path.iterdir

    def iterdir(path):
        if path.name in ("b", "lost+found"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    pairs, (unusable,) = scan_pairs(tmp_path)
    assert [pair.id for pair in pairs] == ["a"]
    assert "b: cannot be read (Permission denied)" in unusable.reason


# Tables as spreadsheets save them

ROWS = [["id", "eye", "patient", "split"], ["a", "left; upper", "Meier, J", "train"], ["b", "right", "Größe", "val"]]


def _saved(delimiter: str, end: str = "\r\n", extra: int = 0) -> str:
    quoted = [[f'"{cell}"' if delimiter in cell else cell for cell in row] + [""] * extra for row in ROWS]
    lines = [delimiter.join(row) for row in quoted] + [delimiter * (3 + extra)] * extra
    return end.join(lines) + end


FORMATS = {
    "CSV": _saved(","),
    "CSV in Europe": _saved(";"),
    "text": _saved("\t"),
    "old Mac": _saved(";", "\r"),
    "Unix": _saved(",", "\n"),
    "sep=,": "sep=,\r\n" + _saved(","),
    "sep=;": "sep=;\r\n" + _saved(";"),
    "SEP quoted": '"SEP=;"\r\n' + _saved(";"),
    "empty cells, commas": _saved(",", extra=2),
    "empty cells, semicolons": _saved(";", extra=2),
    "empty cells, tabs": _saved("\t", extra=2),
}
UTF16 = ("utf-16", "utf-16-le", "utf-16-be")
ENCODINGS = ("utf-8", "utf-8-sig", *UTF16)


def _encoded(text: str, encoding: str) -> bytes:
    return ("\ufeff" + text if encoding in UTF16[1:] else text).encode(encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("saved", FORMATS)
def test_an_eyes_table_is_read_however_it_was_saved(tmp_path, saved, encoding):
    _touch(tmp_path, *FLAT, "b_01.png", "b_02.png")
    (tmp_path / "eyes.csv").write_bytes(_encoded(FORMATS[saved], encoding))
    found = [[pair.id, pair.eye, pair.patient, pair.split] for pair in find_pairs(tmp_path)]
    assert found == ROWS[1:]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("saved", FORMATS)
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt"])
def test_a_table_of_pairs_is_read_however_it_was_saved(tmp_path, saved, encoding, name):
    _touch(tmp_path, "left; upper", "Meier, J", "right", "Größe")
    text = FORMATS[saved].replace("eye", "cf").replace("patient", "fa")
    (tmp_path / name).write_bytes(_encoded(text, encoding))
    found = [[pair.id, pair.cf.name, pair.fa.name, pair.split] for pair in find_pairs(tmp_path / name)]
    assert found == ROWS[1:]


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "latin-1"])
@pytest.mark.parametrize("name", ["eyes.csv", "t.csv", "t.jsonl"])
def test_other_encodings_are_refused(tmp_path, name, encoding):
    _touch(tmp_path, *FLAT)
    text = "id,eye\na,眼\n" if encoding == "gbk" else "id,eye\na,größe\n"
    (tmp_path / name).write_bytes(text.encode(encoding))
    with raises_file(tmp_path / name, DamagedError):
        find_pairs(tmp_path if name == "eyes.csv" else tmp_path / name)


def test_an_error_in_a_table_names_the_line_of_the_file(tmp_path):
    _touch(tmp_path, *FLAT)
    (tmp_path / "eyes.csv").write_text("sep=;\nid;eye\na;\n")
    with pytest.raises(UserError, match="line 3: eye is missing"):
        find_pairs(tmp_path)


# What would be passed over without a word


EYES = "id,eye\na,1\nb,1\n"
TWO = ("a_01.png", "a_02.png", "b_01.png", "b_02.png")


@pytest.mark.parametrize("name", ["Eyes.csv", "EYES.CSV"])
def test_the_table_of_eyes_may_be_named_in_capitals(tmp_path, name):
    _touch(tmp_path, *TWO)
    (tmp_path / name).write_text(EYES)
    assert [pair.eye for pair in find_pairs(tmp_path)] == ["1", "1"]


@pytest.mark.parametrize("name", ["eyes.tsv", "Eyes.xlsx", "eyes.csv.txt", "eyes.jsonl"])
def test_a_table_of_eyes_that_is_not_read_is_refused(tmp_path, name):
    _touch(tmp_path, *TWO)
    (tmp_path / name).write_text(EYES)
    with raises_file(tmp_path / name):
        find_pairs(tmp_path)
    (tmp_path / "eyes.csv").write_text(EYES)  # of which it is the source
    assert len(find_pairs(tmp_path)) == 2


def test_two_tables_of_eyes_are_refused(tmp_path):
    _touch(tmp_path, *TWO, "eyes.csv", "Eyes.csv")
    with pytest.raises(UserError, match="exists too; remove one"):
        find_pairs(tmp_path)


@pytest.mark.parametrize(("column", "refused"), [("caption", True), ("eye", False), ("patient", False)])
def test_eyes_beside_a_table_that_tells_none_are_refused(tmp_path, column, refused):
    _touch(tmp_path, *TWO)
    (tmp_path / "t.csv").write_text(f"cf,fa,{column}\na_01.png,a_02.png,x\nb_01.png,b_02.png,x\n")
    (tmp_path / "eyes.csv").write_text(EYES)
    if refused:
        with raises_file(tmp_path / "eyes.csv"):
            find_pairs(tmp_path / "t.csv")
    else:
        assert len(find_pairs(tmp_path / "t.csv")) == 2


@pytest.mark.parametrize("name", ["eyes.csv", "eyes.jsonl"])
def test_a_table_of_pairs_may_have_any_name(tmp_path, name):
    _touch(tmp_path, *FLAT)
    text = '{"cf": "a_01.png", "fa": "a_02.png"}' if name.endswith("jsonl") else "cf,fa\na_01.png,a_02.png\n"
    (tmp_path / name).write_text(text)
    assert _ids(tmp_path / name) == ["a"]


@pytest.mark.parametrize("name", ["pairs.csv", "Pairs.csv", "pairs.jsonl"])
def test_a_table_of_pairs_is_not_passed_over_for_its_folder(tmp_path, name):
    _touch(tmp_path, *FLAT, name)
    with raises_file(tmp_path / name):
        find_pairs(tmp_path)


@pytest.mark.parametrize("names", [TWO, ("cf/a.png", "fa/a.png", "cf/b.png", "fa/b.png")])
@pytest.mark.parametrize("suffix", [".j2k", ".JP2", ".heic", ".avif", ".dcm"])
def test_images_of_other_kinds_are_views_and_refused_when_they_are_read(tmp_path, names, suffix):
    _touch(tmp_path, *names[:2], *(str(Path(name).with_suffix(suffix)) for name in names[2:]))
    assert _ids(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("place", ["cf", "fa", "NORMAL", "ABNORMAL"])
def test_folders_of_images_within_a_folder_of_views_are_refused(tmp_path, place):
    views = ("cf/a.png", "fa/a.png") if place in ("cf", "fa") else (f"{place}/1.png", f"{place}/1-1.png")
    _touch(tmp_path, *views, f"{place}/visit2/b.png", f"{place}/notes/readme.md")
    with pytest.raises(UserError, match=f"visit2: is not searched; move its images to {place}/"):
        find_pairs(tmp_path)
    pairs, unusable = scan_pairs(tmp_path)
    assert len(pairs) == len(unusable) == 1


@pytest.mark.parametrize("names", [TWO, ("cf/a.png", "fa/a.png", "cf/b.png", "fa/b.png")])
def test_links_to_nothing_are_views_and_refused_when_they_are_read(tmp_path, names):
    _touch(tmp_path, *names[:2])
    for name in names[2:]:
        (tmp_path / name).symlink_to("../.git/annex/objects/gone")
        (tmp_path / name).with_suffix(".txt").symlink_to("../.git/annex/objects/gone")
    assert _ids(tmp_path) == ["a", "b"]
    assert find_pairs(tmp_path)[1].cf_points is not None


def test_a_table_of_eyes_that_is_a_link_to_nothing_is_refused(tmp_path):
    _touch(tmp_path, *TWO)
    (tmp_path / "eyes.csv").symlink_to("gone")
    with raises_file(tmp_path / "eyes.csv", DamagedError):
        find_pairs(tmp_path)


def test_whole_numbers_in_jsonl_are_one_name(tmp_path):
    _touch(tmp_path, *TWO)
    lines = [
        '{"cf": "a_01.png", "fa": "a_02.png", "patient": 7}',
        '{"cf": "b_01.png", "fa": "b_02.png", "patient": 7.0}',
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    assert [pair.patient for pair in find_pairs(tmp_path / "t.jsonl")] == ["7", "7"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_json_is_no_name(tmp_path, value):
    _touch(tmp_path, *FLAT)
    (tmp_path / "t.jsonl").write_text(f'{{"cf": "a_01.png", "fa": "a_02.png", "patient": {value}}}')
    with pytest.raises(UserError, match="is not a valid value"):
        find_pairs(tmp_path / "t.jsonl")
