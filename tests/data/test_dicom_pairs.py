"""Which DICOM files become pairs, by their tags alone; no file name, folder or order matters."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet

from dicom_files import SECONDARY_CAPTURE, DicomForm, write_dicom
from refusals import raises_file
from retipair.data.dicom_pairs import is_dicom_folder
from retipair.data.pair import save_image
from retipair.data.raw_pair import RawPair
from retipair.data.sources import find_pairs, scan_pairs
from retipair.data.views import find_views
from retipair.runtime.errors import DamagedError, MissingError, UserError

RED = np.full((40, 50, 3), (180, 90, 40), np.uint8)
GREY = np.full((40, 50), 90, np.uint8)
DYE = "Fluorescein sodium"


def cf(path: Path, **form: object) -> Path:
    return write_dicom(path, RED, DicomForm(**form))  # type: ignore[arg-type]


def fa(path: Path, pixels: np.ndarray = GREY, **form: object) -> Path:
    return write_dicom(path, pixels, DicomForm(**form))  # type: ignore[arg-type]


def only(root: Path) -> RawPair:
    [pair] = find_pairs(root)
    return pair


def reasons(root: Path) -> list[str]:
    return [item.reason for item in scan_pairs(root)[1]]


def test_tags_make_the_pairs(tmp_path: Path) -> None:
    for patient in ("A", "B"):
        for side in ("R", "L"):
            cf(tmp_path / f"x/{patient}{side}1", patient=patient, side=side)
            fa(tmp_path / f"y/z/{side}{patient}2.dcm", patient=patient, side=side)
    pairs = find_pairs(tmp_path)
    assert {(pair.patient, pair.cf.name, pair.fa.name) for pair in pairs} == {
        (patient, f"{patient}{side}1", f"{side}{patient}2.dcm") for patient in "AB" for side in "LR"
    }
    assert len({pair.eye for pair in pairs}) == len({pair.id for pair in pairs}) == 4
    assert all(pair.dicom and pair.views_named for pair in pairs)


def test_the_view_follows_from_agent_then_channels_then_colour(tmp_path: Path) -> None:
    tinted = np.stack([GREY, GREY + 10, GREY], axis=-1)
    photo = cf(tmp_path / "1")
    for pixels, form in (
        (RED, {"agent": DYE}),  # as a tinted secondary capture
        (GREY, {}),
        (tinted, {"sop_class": SECONDARY_CAPTURE, "modality": "XC"}),
    ):
        path = fa(tmp_path / "2", pixels, **form)
        assert (only(tmp_path).cf, only(tmp_path).fa) == (photo, path)


def test_grey_images_beside_an_angiogram_with_agent_are_not_taken_for_it(tmp_path: Path) -> None:
    cf(tmp_path / "1")
    fa(tmp_path / "red_free", number=1)
    angiogram = fa(tmp_path / "2", number=2, agent=DYE)
    fa(tmp_path / "icg", number=3, agent="Indocyanine green")
    assert (only(tmp_path).fa, only(tmp_path).more_fa) == (angiogram, ())


def test_several_images_are_candidates_in_the_order_of_time(tmp_path: Path) -> None:
    paths = {number: cf(tmp_path / f"c{9 - number}", number=number) for number in (3, 1, 2)}
    late, early = (fa(tmp_path / name, number=number) for name, number in (("a", 8), ("b", 5)))
    pair = only(tmp_path)
    assert (pair.cf, *pair.more_cf) == (paths[1], paths[2], paths[3])
    assert (pair.fa, *pair.more_fa) == (early, late)


def test_each_day_with_an_angiogram_is_a_pair_with_the_nearest_photograph(tmp_path: Path) -> None:
    photos = {day: cf(tmp_path / f"c{day}", day=day) for day in ("20230101", "20240517", "20240601")}
    angiograms = {day: fa(tmp_path / f"f{day}", day=day) for day in ("20240517", "20230120")}
    pairs = {pair.fa: pair for pair in find_pairs(tmp_path)}
    assert pairs[angiograms["20240517"]].cf == photos["20240517"]
    assert pairs[angiograms["20230120"]].cf == photos["20230101"]
    assert len({pair.id for pair in pairs.values()}) == 2
    assert len({pair.eye for pair in pairs.values()}) == 1


def test_a_photograph_of_another_day_and_an_fa_without_agent_are_warned_of(tmp_path: Path) -> None:
    cf(tmp_path / "c1", day="20240517")
    angiogram = fa(tmp_path / "f1", day="20240517", agent=DYE)
    assert only(tmp_path).warnings == ()
    other = fa(tmp_path / "f2", day="20240601", agent=DYE)
    [day] = {pair.fa: pair for pair in find_pairs(tmp_path)}[other].warnings
    assert "another day" in day
    angiogram.unlink()
    fa(other, day="20240601")
    [also_day, agent] = only(tmp_path).warnings
    assert also_day == day
    assert "red-free" in agent
    assert not any(digit in "".join((day, agent)) for digit in "0123456789")


def test_points_beside_files_choose_them(tmp_path: Path) -> None:
    cf(tmp_path / "c1", number=1)
    photo, angiogram = cf(tmp_path / "c2.dcm", number=2), fa(tmp_path / "f1", number=1)
    fa(tmp_path / "f2", number=2)
    photo.with_suffix(".csv").write_text(" ,X,Y\n1,3,4\n")
    angiogram.with_suffix(".txt").write_text("3 4\n")
    pair = only(tmp_path)
    assert (pair.cf, pair.more_cf, pair.fa, pair.more_fa) == (photo, (), angiogram, ())
    assert (pair.cf_points, pair.fa_points) == (photo.with_suffix(".csv"), angiogram.with_suffix(".txt"))
    angiogram.with_suffix(".txt").unlink()
    assert "c2.csv: the other view has no points" in reasons(tmp_path)[0]


def test_points_of_a_file_that_is_named_by_its_uid_have_its_whole_name(tmp_path: Path) -> None:
    photo, angiogram = cf(tmp_path / "1.2.840.113.5"), fa(tmp_path / "1.2.840.113.6")
    (tmp_path / "1.2.840.113.txt").write_text("9 9\n")  # of another file
    assert (only(tmp_path).cf_points, only(tmp_path).fa_points) == (None, None)
    points = [path.with_name(f"{path.name}.txt") for path in (photo, angiogram)]
    for path in points:
        path.write_text("3 4\n")
    assert [only(tmp_path).cf_points, only(tmp_path).fa_points] == points


def test_rows_of_a_table_with_files_that_are_named_by_their_uid_are_different_pairs(tmp_path: Path) -> None:
    for uid in ("1.2.840.5", "1.2.840.7"):
        cf(tmp_path / uid), fa(tmp_path / f"{uid}.9")
    table = tmp_path / "pairs.csv"
    table.write_text("cf,fa,patient\n1.2.840.5,1.2.840.5.9,a\n1.2.840.7,1.2.840.7.9,b\n")
    assert len(find_pairs(table)) == 2


def test_copies_and_other_kinds_of_files_are_ignored(tmp_path: Path) -> None:
    photo = cf(tmp_path / "1")
    (tmp_path / "1_copy").write_bytes(photo.read_bytes())
    fa(tmp_path / "2")
    fa(tmp_path / "oct", modality="OPT", sop_class="1.2.840.10008.5.1.4.1.1.77.1.5.4")
    (tmp_path / "readme.txt").write_text("Ada")
    assert only(tmp_path).more_cf == ()


def test_a_dicomdir_lists_the_images(tmp_path: Path) -> None:
    paths = [cf(tmp_path / "raw/1"), fa(tmp_path / "raw/2")]
    disk = FileSet()
    for path in paths:
        tags = pydicom.dcmread(path)
        tags.StudyID, tags.SeriesNumber = "1", 1
        tags.save_as(path)
        disk.add(path)
    disk.write(tmp_path / "disk")
    save_image(tmp_path / "disk/viewer/icon.png", RED)
    cf(tmp_path / "disk/not_listed", patient="Z")
    pair = only(tmp_path / "disk")
    assert (pair.patient, pair.more_cf, pair.more_fa) == ("MRN-0001", (), ())
    pair.fa.unlink()
    assert any("does not exist; copy the whole disk again" in reason for reason in reasons(tmp_path / "disk"))
    (tmp_path / "disk/DICOMDIR").write_bytes(b"")
    with raises_file(tmp_path / "disk/DICOMDIR", DamagedError):
        find_pairs(tmp_path / "disk")


def test_folders_with_other_images_are_no_dicom_folders(tmp_path: Path) -> None:
    cf(tmp_path / "deep/er/a.dcm")
    assert is_dicom_folder(tmp_path)
    save_image(tmp_path / "1_01.png", RED)
    assert not is_dicom_folder(tmp_path)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"side": ""}, "no laterality R or L"),
        ({"side": "B"}, "no laterality R or L"),
        ({"patient": ""}, "no PatientID"),
    ],
)
def test_an_unknown_eye_is_one_line(form: dict[str, str], words: str, tmp_path: Path) -> None:
    cf(tmp_path / "1", patient="A")
    fa(tmp_path / "2", patient="A")
    path = cf(tmp_path / "3", **form)
    [reason] = reasons(tmp_path)
    assert reason.startswith(f"{path}: ")
    assert words in reason


@pytest.mark.parametrize(("write", "missing"), [(cf, "FA"), (fa, "CF")])
def test_a_view_without_the_other_is_one_line(write, missing: str, tmp_path: Path) -> None:
    path = write(tmp_path / "1")
    write(tmp_path / "2", number=2)
    [reason] = reasons(tmp_path)
    assert reason.startswith(f"{path}: its eye has no {missing}")


def test_files_that_cannot_be_read_are_one_line_each(tmp_path: Path) -> None:
    cf(tmp_path / "1")
    fa(tmp_path / "2")
    whole = cf(tmp_path / "3", side="L").read_bytes()
    (tmp_path / "3").write_bytes(whole[: len(whole) - 3000])  # the tags are whole, the pixels are not
    (tmp_path / "4.dcm").write_bytes(b"not DICOM")
    for name, length in (("5", 300), ("6", 400), ("7", 700)):  # the tags of 6 and 7 name the kind, but not the size
        (tmp_path / name).write_bytes(whole[:length])
    named = [Path(reason.partition(":")[0]).name for reason in reasons(tmp_path)]
    assert sorted(named) == ["3", "4.dcm", "5", "6", "7"]
    assert len(scan_pairs(tmp_path)[0]) == 1


def test_a_folder_of_other_dicom_files_is_refused(tmp_path: Path) -> None:
    fa(tmp_path / "oct", modality="OPT", sop_class="1.2.840.10008.5.1.4.1.1.77.1.5.4")
    with raises_file(tmp_path, MissingError):
        find_pairs(tmp_path)


def test_a_table_of_eyes_is_refused(tmp_path: Path) -> None:
    cf(tmp_path / "1")
    fa(tmp_path / "2")
    (tmp_path / "eyes.csv").write_text("id,eye\n1,a\n")
    with raises_file(tmp_path / "eyes.csv"):
        find_pairs(tmp_path)


def test_a_table_and_folders_of_views_may_name_dicom_files(tmp_path: Path) -> None:
    """What they do not say, the tags do."""
    cf(tmp_path / "cf/a.dcm", patient="A")
    fa(tmp_path / "fa/a.dcm", patient="A")
    pair = only(tmp_path)
    assert (pair.id, pair.patient, pair.eye, pair.dicom) == ("a", "A", "A R", True)
    table = tmp_path / "pairs.csv"
    table.write_text("cf,fa,fa_frame,patient\ncf/a.dcm,fa/a.dcm,3,study7\n")
    pair = only(table)
    assert (pair.patient, pair.eye, pair.fa_frame) == ("study7", "study7 R", 3)
    fa(tmp_path / "fa/a.dcm", patient="B")
    with raises_file_in_message(tmp_path / "fa/a.dcm", "PatientID differs"):
        find_pairs(table)
    for frame in ("0", "1.5", "first"):
        table.write_text(f"cf,fa,fa_frame\ncf/a.dcm,fa/a.dcm,{frame}\n")
        with pytest.raises(UserError, match="line 2: fa_frame .* is not the number of a frame"):
            find_pairs(table)


def raises_file_in_message(path: Path, words: str):
    return pytest.raises(UserError, match=f"{path}: its {words}")


def test_single_views_are_not_dicom_files(tmp_path: Path) -> None:
    """The manifest would name the file."""
    path = cf(tmp_path / "raw/photo.dcm")
    save_image(tmp_path / "mixed/cf/a.png", RED)
    mixed = cf(tmp_path / "mixed/cf/b.dcm")
    for data, named in ((path, path), (path.parent, path.parent), (tmp_path / "mixed", mixed)):
        with raises_file(named):
            find_views(data, "cf")
    with raises_file(path):
        find_pairs(path)


def test_an_angiogram_without_date_is_not_paired_with_another_study(tmp_path: Path) -> None:
    cf(tmp_path / "1", tags={"StudyDate": None})
    fa(tmp_path / "2", tags={"StudyDate": None})
    assert not find_or_nothing(tmp_path)
    assert "no CF of its study" in reasons(tmp_path)[0]


def find_or_nothing(root: Path) -> list[RawPair]:
    return scan_pairs(root)[0]


def test_images_of_different_people_with_one_id_are_not_paired(tmp_path: Path) -> None:
    cf(tmp_path / "1")
    fa(tmp_path / "2", tags={"PatientBirthDate": "19010101"})
    assert not find_or_nothing(tmp_path)
    [reason] = reasons(tmp_path)
    assert "different people" in reason
    assert "1901" not in reason
    fa(tmp_path / "2", tags={"PatientBirthDate": ""})  # an empty tag says nothing
    assert len(find_or_nothing(tmp_path)) == 1


def test_a_day_of_grey_photographs_is_no_angiogram_if_others_state_their_agent(tmp_path: Path) -> None:
    cf(tmp_path / "1")
    angiogram = fa(tmp_path / "2", agent=DYE)
    fa(tmp_path / "red_free", day="20240601")
    cf(tmp_path / "3", day="20240601")
    assert [pair.fa for pair in find_pairs(tmp_path)] == [angiogram]


def test_indocyanine_green_is_no_fluorescein_angiogram(tmp_path: Path) -> None:
    cf(tmp_path / "1")
    angiogram = fa(tmp_path / "2", agent=DYE)
    fa(tmp_path / "3", agent="ICG fluorescence angiography")
    assert (only(tmp_path).fa, only(tmp_path).more_fa) == (angiogram, ())
