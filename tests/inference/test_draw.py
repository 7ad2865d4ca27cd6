"""Pictures of predictions show the letters of names."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from slowfast.inference.draw import PANEL, color, draw_bars, font, write_sheet
from slowfast.inference.results import Class


# the letters of the last pair are in another font that matplotlib brings
@pytest.mark.parametrize("letters", ["\u00fc\u00df", "\u0416\u0434", "\u0394\u03bb", "\u1d84\u1d8a"])
def test_letters_beyond_ascii_are_not_all_the_same_box(letters, tmp_path):
    pictures = []
    for letter in letters:
        found, path = Class(letter, 0, 0.5), tmp_path / f"{ord(letter)}.png"
        write_sheet(np.zeros((1, 2, 32, 32, 3), np.uint8), [(letter, [found])], letter, str(path))
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture).astype(int))
    title, name, label = np.s_[:48, :48], np.s_[48:80, :48], np.s_[80:, :48]
    for part in (title, name, label):
        first, second = (picture[part] for picture in pictures)
        assert (first != second).any() and first.std() > 0


def test_a_long_name_ends_before_its_probability():
    pictures = []
    for name in ("a", "a long name " * 9):
        image = Image.new("RGB", (300, 30), PANEL)
        draw_bars(image, [Class(name, 0, 1.0)], (0, 0, 300), 15)
        pictures.append(np.asarray(image)[:, 300 - round(font(15).getlength("100.0 %")) :])
    assert np.array_equal(*pictures)


def test_classes_have_different_colours():
    assert len({color(index) for index in range(50)}) == 50
