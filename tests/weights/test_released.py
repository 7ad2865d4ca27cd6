"""Test that released weights are recognised by name, address, file name and checksum."""

from __future__ import annotations

import hashlib
import json

import pytest

from slowfast.weights import fetch
from slowfast.weights.released import identify


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("uniformer_s16x4_k400", "uniformer_s16x4_k400"),
        ("uniformer_small_k400_16x4", "uniformer_s16x4_k400"),
        (
            "https://huggingface.co/Sense-X/uniformer_video/resolve/main/uniformer_base_k600_32x4.pth",
            "uniformer_b32x4_k600",
        ),
        ("/weights/uniformer_small_sthv2_16_prek400.pth", "uniformer_s16_sthv2_prek400"),
        ("https://drive.google.com/file/d/1-jGZIIuTM5IYIpqkNTojhGhfMc7Gu9Kt/view", "uniformer_s16x4_k400"),
        ("my models/k400+k710_uniformerv2_b16_8x224.pyth", "k400_k710_uniformerv2_b16_8x224"),
        (
            "x/uniformerv2-base-p16-res224_clip_8xb32-u8_kinetics400-rgb_20230313-e29fc968.pth",
            "uniformerv2-base-p16-res224_clip_8xb32-u8_kinetics400-rgb",
        ),
        ("uniformer_small_tl_224.pth", "uniformer_small_in1k_token_labeling"),
    ],
)
def test_weights_are_known_by_name_address_and_file_name(address, name):
    entry = identify(address)
    assert entry is not None and entry["name"] == name


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_weights_are_known_by_their_checksum(kind, tmp_path, monkeypatch):
    (tmp_path / "my weights.pth").write_bytes(b"content")
    digest = hashlib.new(kind, b"content").hexdigest()
    entry = {"source": "x", "url": "https://x/y.pth", kind: digest[:8] if kind == "sha256" else digest}
    (tmp_path / "released.json").write_text(json.dumps({"weights": {"known": entry}}))
    assert identify(tmp_path / "my weights.pth") is None
    monkeypatch.setattr(fetch, "RELEASED", tmp_path / "released.json")
    assert (identify(tmp_path / "my weights.pth") or {}).get("name") == "known"
    assert identify(tmp_path / "other.pth") is None


def test_a_file_is_read_once_for_its_checksum(tmp_path, monkeypatch):
    path = tmp_path / "large.pth"
    path.write_bytes(b"content")
    assert identify(path) is None
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "new", None)
        assert identify(path) is None
    path.write_bytes(b"other content")
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "new", None)
        with pytest.raises(TypeError):  # it is read again
            identify(path)
