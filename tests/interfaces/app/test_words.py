"""Both languages say the same things, with the same values in them."""

import re
from dataclasses import fields

import pytest

from retipair.interfaces.app.words import EN, ZH, Words, words_of

NAMES = [field.name for field in fields(Words)]


@pytest.mark.parametrize("name", NAMES)
def test_a_text_has_the_same_values_flags_and_keys_in_both_languages(name: str) -> None:
    english, chinese = getattr(EN, name), getattr(ZH, name)
    assert english.strip()
    assert re.search(r"[\u4e00-\u9fff]", chinese)
    assert not re.search(r"[\u4e00-\u9fff]", english)
    for pattern in (r"\{\w+[^}]*\}", r"--\w+", r"\(.\)"):
        assert sorted(re.findall(pattern, english)) == sorted(re.findall(pattern, chinese)), pattern


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LANG": "zh_CN.UTF-8"}, ZH),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}, EN),
        ({"LC_MESSAGES": "zh_TW"}, ZH),
        ({"LANG": "de_DE.UTF-8"}, EN),
    ],
)
def test_auto_is_the_language_of_the_terminal(
    variables: dict[str, str], expected: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert words_of("auto") is expected
    assert words_of("en") is EN
    assert words_of("zh") is ZH
