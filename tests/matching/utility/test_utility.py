"""`retipair utility`: what it writes, that it is exact and continues, and which input it refuses before any work."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

import retipair
from conftest import prepared_record
from eyes import draw_pair
from refusals import raises_file, raises_setting
from retipair.config import UtilityConfig
from retipair.data.manifest import GeneratedPair, PreparedPair, read_manifest, write_manifest
from retipair.data.pair import save_image
from retipair.matching.utility import utility as command
from retipair.matching.utility.arms import ARMS, Material
from retipair.matching.utility.keypoints import find_keypoints, view_maps
from retipair.matching.utility.plan import plan_utility
from retipair.matching.utility.report import write_report
from retipair.matching.utility.utility import utility
from retipair.runtime.errors import FileError, MissingError, OccupiedError, UserError

SIZE = 128
SMALL = {"seeds": 1, "variants": 2, "steps": 3, "warps": 1, "phantoms": 1, "workers": 1}


def write_pairs(folder: Path, first: int, splits: str, landmarks: bool, eyes: str = "") -> Path:
    """A prepared folder of one eye for each letter of `splits` (t, v), the first drawn with the seed `first`."""
    records = []
    for number, letter in enumerate(splits, start=first):
        cf, fa = draw_pair(number, SIZE)
        name = f"pair{number}"
        for view, image in (("cf", cf), ("fa", fa), ("mask", (cf.max(axis=2) > 0).astype(np.uint8) * 255)):
            save_image(folder / view / f"{name}.png", image)
        at = find_keypoints(
            view_maps(*(np.kron(one, np.ones((4, 4), one.dtype)) for one in (fa, fa > 0))).ridges, 8, 40
        )
        points = np.hstack([at / 4, at / 4 + 0.25]).tolist() if landmarks else []
        record = prepared_record(name, {"t": "train", "v": "val"}[letter])
        eye = eyes[number - first] if eyes else name
        records.append(structs.replace(record, points=points, size=SIZE, eye=eye))
    write_manifest(folder, records)
    return folder


@pytest.fixture(scope="module")
def real(once: Callable[..., Path]) -> Path:
    return once("utility_real", lambda folder: write_pairs(folder, 1, "tvv", True, "ABC"))


@pytest.fixture(scope="module")
def generated(once: Callable[..., Path]) -> Path:
    return once("utility_generated", lambda folder: write_pairs(folder, 11, "tt", False))


def edit(folder: Path, copy: Path, change: Callable[[PreparedPair], PreparedPair | GeneratedPair]) -> Path:
    """A folder with the same images and another manifest."""
    copy.mkdir()
    for name in ("cf", "fa", "mask"):
        (copy / name).symlink_to(folder / name)
    write_manifest(copy, [change(record) for record in read_manifest(folder)])  # type: ignore[arg-type]
    return copy


def by_adapter(record: PreparedPair) -> GeneratedPair:
    return GeneratedPair(
        **{"id": record.id, "index": int(record.id[4:]), "seed": 0, "attempt": 0, "mode": "cf2fa", "base": "b"},
        **{"source_id": record.id, "source_eye": record.eye, "strength": None, "prompt": "", "size": SIZE},
        **{"cf": record.cf, "fa": record.fa, "adapter_sha256": "0" * 64, "settings_sha256": "0" * 64},
        **{"fa_chroma": 0.0, "consistency": 0.5},
    )


def test_all_arms_are_tested_and_an_interrupted_command_continues(
    real: Path, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "whole"
    scores = retipair.utility(real, out, generated, **SMALL, arms=list(ARMS))
    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == ["utility.json", "utility.md"]
    assert scores["eyes"] == ["A", "B", "C"]
    assert set(scores["arms"]) == set(ARMS)
    for arm in scores["arms"].values():
        for level in arm.values():
            for measure in level.values():
                assert set(measure["by_eye"]) == {"A", "B", "C"}
                assert 0 <= measure["interval"]["low"] <= measure["interval"]["high"] <= 1
    page = (out / "utility.md").read_text()
    assert all(f"| {arm.text} |" in page for arm in ARMS.values())
    assert all(f"- {one}" in page for told in scores["sentences"].values() for one in told)

    config = UtilityConfig(real=real, out=tmp_path / "again", generated=generated, arms=("generated", "real"), **SMALL)
    train = command.train_descriptor
    monkeypatch.setattr(command, "train_descriptor", lambda *given: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception):
        utility(config)
    monkeypatch.setattr(command, "train_descriptor", train)
    done = []
    monkeypatch.setattr(command, "_run", lambda task, run=command._run: (done.append(task.arm), run(task)))
    monkeypatch.setattr(command, "write_report", lambda *given: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception):
        utility(config)
    monkeypatch.setattr(command, "write_report", write_report)
    utility(config)
    utility(config)
    assert done == ["generated", "real"]
    with raises_file(config.out, OccupiedError):
        utility(replace(config, steps=4))
    for arm in ("generated", "real"):
        again = json.loads((tmp_path / "again/utility.json").read_text())["arms"][arm]
        assert again == scores["arms"][arm]


def test_the_page_says_nothing_of_seeds_or_generated_pairs_that_there_are_not(real: Path, tmp_path: Path) -> None:
    def page(name: str, **settings: object) -> str:
        retipair.utility(real, tmp_path / name, **{**SMALL, "arms": ["real", "untrained"], **settings})
        return (tmp_path / name / "utility.md").read_text()

    one, two = page("one"), page("two", seeds=2)
    assert "standard deviation over seeds" not in one
    assert "standard deviation over seeds" in two
    assert "According to their manifest" not in one


def test_real_arms_never_train_on_the_tested_eye(real: Path, generated: Path) -> None:
    config = UtilityConfig(real=real, out=Path("o"), generated=generated, test="all")
    plan = plan_utility(config)
    folds = plan.folds(ARMS["real"])
    assert [eyes for eyes, _ in folds] == [["A"], ["B"], ["C"]]
    for eyes, allowed in folds:
        groups = {record.group for record in allowed}
        assert groups == {"A", "B", "C"} - set(eyes)
        [sources] = ARMS["real"].sources(plan.material, allowed, 0)
        assert [source.id for source in sources] == [f"real/{record.id}" for record in allowed]
    held_out = plan_utility(replace(config, test="held_out"))
    assert held_out.eyes == ["B", "C"]
    [(eyes, allowed)] = held_out.folds(ARMS["real"])
    assert (eyes, {record.group for record in allowed}) == (["B", "C"], {"A"})


def test_pairs_of_an_adapter_are_tested_on_held_out_eyes(real: Path, generated: Path, tmp_path: Path) -> None:
    made = edit(generated, tmp_path / "made", by_adapter)
    config = UtilityConfig(real=real, out=Path("o"), generated=made)
    assert plan_utility(config).eyes == ["B", "C"]
    assert plan_utility(config).seen == ()
    assert plan_utility(replace(config, test="all")).seen == ("A",)
    assert plan_utility(replace(config, generated=generated)).eyes == ["A", "B", "C"]


@pytest.mark.parametrize(("mode", "eyes"), [("noise", "ABC"), ("from_data", "BC"), ("cf2fa", "BC"), ("fa2cf", "BC")])
def test_pairs_made_from_real_views_are_tested_on_held_out_eyes(
    real: Path, generated: Path, tmp_path: Path, mode: Any, eyes: str
) -> None:
    made = edit(
        generated, tmp_path / "made", lambda one: structs.replace(by_adapter(one), adapter_sha256=None, mode=mode)
    )
    assert plan_utility(UtilityConfig(real=real, out=Path("o"), generated=made)).eyes == list(eyes)


def test_the_page_does_not_say_that_pairs_of_an_adapter_were_made_without_one(
    real: Path, generated: Path, tmp_path: Path
) -> None:
    made = edit(generated, tmp_path / "made", by_adapter)
    held_out = edit(real, tmp_path / "real", lambda record: structs.replace(record, split="val"))
    retipair.utility(held_out, tmp_path / "o", made, **SMALL, arms=["generated", "untrained"], test="all")
    page = (tmp_path / "o/utility.md").read_text()
    assert "without an adapter" not in page
    assert "Only pairs of the splits val and test were tested." in page


def test_the_page_says_without_an_adapter_only_if_the_manifest_does(
    real: Path, generated: Path, tmp_path: Path
) -> None:
    without = edit(generated, tmp_path / "without", lambda one: structs.replace(by_adapter(one), adapter_sha256=None))
    for folder, known in ((without, True), (generated, False)):
        out = tmp_path / f"o{known}"
        retipair.utility(real, out, folder, **SMALL, arms=["generated", "untrained"], test="all")
        page = (out / "utility.md").read_text()
        assert ("were made without an adapter." in page) == known
        assert ("does not record for all of them whether they were made with an adapter" in page) == (not known)


def test_pairs_made_from_tested_eyes_are_left_out(real: Path, generated: Path, tmp_path: Path) -> None:
    made = edit(
        generated, tmp_path / "made", lambda record: structs.replace(record, eye="A" if record.id == "pair11" else "x")
    )
    config = UtilityConfig(real=real, out=Path("o"), generated=made, arms=("generated",))
    plan = plan_utility(config)
    assert [record.id for record in plan.material.generated] == ["pair12"]
    assert any("made from tested eyes" in note for note in plan.notes)
    all_of_them = edit(generated, tmp_path / "all", lambda record: structs.replace(record, eye="A"))
    with raises_file(all_of_them, MissingError):
        plan_utility(replace(config, generated=all_of_them))


def test_the_controls_use_the_same_cf(real: Path, generated: Path) -> None:
    material = plan_utility(UtilityConfig(real=real, out=Path("o"), generated=generated)).material
    pairs = {name: ARMS[name].sources(material, [], 0)[0][0].load() for name in ("generated", "inverted", "mispaired")}
    inside = np.logical_and.reduce([pair.mask for pair in pairs.values()])
    for pair in pairs.values():
        assert np.array_equal(pair.cf[inside], pairs["generated"].cf[inside])
    other = ARMS["generated"].sources(material, [], 0)[0][1].load()
    assert np.array_equal(pairs["mispaired"].fa[inside], other.fa[inside])
    phantoms = [ARMS["phantoms"].sources(material, [], seed)[0][0].load().fa for seed in (0, 0, 1)]
    assert np.array_equal(phantoms[0], phantoms[1])
    assert not np.array_equal(phantoms[0], phantoms[2])
    assert isinstance(material, Material)


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"seeds": 0}, "seeds"),
        ({"variants": 1}, "variants"),
        ({"steps": 0}, "steps"),
        ({"warps": 0}, "warps"),
        ({"phantoms": 0}, "phantoms"),
        ({"workers": -1}, "workers"),
        ({"arms": ()}, "arms"),
        ({"arms": ("real", "real")}, "arms"),
        ({"generated": None}, "generated"),
    ],
)
def test_settings_are_refused(
    real: Path, generated: Path, tmp_path: Path, settings: dict[str, object], setting: str
) -> None:
    with raises_setting(setting):
        utility(UtilityConfig(**{"real": real, "out": tmp_path / "o", "generated": generated, **settings}))
    assert not (tmp_path / "o").exists()


def test_bad_input_is_refused_before_any_work(real: Path, generated: Path, tmp_path: Path) -> None:
    def refused(folder: Path, kind: type[UserError] = MissingError, **settings: object) -> str:
        with pytest.raises(kind) as caught:
            utility(UtilityConfig(**{"real": folder, "out": tmp_path / "o", "generated": generated, **settings}))
        assert not (tmp_path / "o").exists()
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    assert "point files" in refused(generated)
    far = edit(real, tmp_path / "far", lambda record: structs.replace(record, points=[[0, 0, 9, 9]] * 5))
    assert "agree within 8 px" in refused(far)
    one = edit(real, tmp_path / "one", lambda record: structs.replace(record, eye="A", split="val"))
    assert "only one eye or patient with landmarks, A" in refused(one)
    train = edit(real, tmp_path / "train", lambda record: structs.replace(record, split="train"))
    assert "--test all" in refused(train, test="held_out")
    larger = edit(generated, tmp_path / "larger", lambda record: structs.replace(record, size=SIZE * 2))
    assert "256 px wide, but" in refused(real, FileError, generated=larger)
    val = edit(real, tmp_path / "val", lambda record: structs.replace(record, split="val"))
    assert "leave out real" in refused(val, UserError, test="held_out")
    single = edit(generated, tmp_path / "single", lambda record: structs.replace(record, eye="x"))
    assert "leave out mispaired" in refused(real, UserError, generated=single)
    (tmp_path / "file").touch()
    with raises_file(tmp_path / "file", OccupiedError):
        utility(UtilityConfig(real=real, out=tmp_path / "file/o", generated=generated))


@pytest.mark.nightly
def test_on_rendered_eyes_the_arms_come_in_the_known_order(tmp_path: Path) -> None:
    """Aligned pairs help more than pairs that are 4 px off, and these more than pairs of different eyes."""
    retipair.phantom(tmp_path / "raw", unregistered=True, amount=8, size=256, seed=5)
    retipair.prepare(tmp_path / "raw/raw", tmp_path / "real", size=256, workers=1)
    retipair.phantom(tmp_path / "made", amount=24, size=256, seed=9)
    arms = ["generated", "shifted", "mispaired", "untrained"]
    settings = {"arms": arms, "test": "all", "seeds": 2, "warps": 3, "workers": 1}
    scores = retipair.utility(tmp_path / "real", tmp_path / "out", tmp_path / "made", **settings)

    def means(measure: str) -> dict[str, float]:
        return {arm: scores["arms"][arm]["hard"][measure]["interval"]["mean"] for arm in arms}

    for measure in ("AUC@20", "success"):
        by_arm = means(measure)
        assert by_arm["generated"] > by_arm["shifted"] > by_arm["mispaired"], by_arm
    found = means("recall@1")  # its tolerance of 8 px does not see the shift
    assert min(found["generated"], found["shifted"]) > max(found["mispaired"], found["untrained"]), found
