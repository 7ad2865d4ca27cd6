"""JSON files are readable for people, and keep every name."""

from __future__ import annotations

import json
import os

import pytest

from slowfast.utils.io import write_json


@pytest.mark.parametrize("name", [b"\xe9.mp4", b"\xff\xc3", "a\\\udce9", "\ud83d", "\x85\u2028\u2029\t\x7f", "\\u00e9"])
def test_json_shows_letters_and_keeps_every_name(tmp_path, name):
    value = {"Übergang, süß, 日本, 😀": [os.fsdecode(name), "Größe", float("nan")]}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert all(word in text for word in ("Übergang, süß, 日本, 😀", "Größe")) and len(text.splitlines()) == 7
    assert json.loads(text) == {key: [*names[:2], None] for key, names in value.items()}
