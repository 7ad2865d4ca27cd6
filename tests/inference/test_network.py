"""Predictions and features equal those of a test and of the network."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from make_demo_data import CLASS_NAMES
from torch.utils.data import DataLoader, Dataset

import slowfast
from slowfast.datasets.reader import MediaError, read_frames
from slowfast.engine.setup import compile_blocks
from slowfast.inference.layers import LayerFeatures
from slowfast.models.timm_tower import VisionTower
from slowfast.models.uniformerv2 import UniFormerV2
from slowfast.models.zoo import create_model
from slowfast.visualization.maps import attention, grad_cam


@pytest.fixture(scope="module")
def paths(videos) -> list[str]:
    return [str(videos / f"val_{i}.mp4") for i in range(7)]


def test_scores_equal_those_of_a_test_bit_for_bit(net, trained, paths):
    tested = np.load(trained / "test/scores.npz")
    found = net.predict(paths)
    assert [prediction.path for prediction in found] == paths == tested["id"].tolist()
    assert np.array_equal(np.stack([prediction.scores for prediction in found]), tested["scores"])
    assert np.array_equal(net.predict(paths[3]).scores, tested["scores"][3])


def test_probabilities_are_those_of_all_classes_and_have_names(net, paths):
    found = net.predict(paths[0], top=3)
    assert found.probabilities.shape == (8,) and found.probabilities.sum() == pytest.approx(1)
    expected = torch.from_numpy(found.scores / 6).double().softmax(0).numpy()
    assert np.allclose(found.probabilities, expected)
    assert [c.probability for c in found.top] == sorted(found.probabilities, reverse=True)[:3]
    assert all(c.name == CLASS_NAMES[c.index] for c in found.top)


def test_the_most_probable_class_is_that_of_the_highest_score(net):
    scores = np.array([1.6, np.nextafter(np.float32(1.6), np.float32(2))], np.float32)
    assert scores[0] / 6 == scores[1] / 6 and net.probabilities(scores, 6).argmax() == 1


def test_maxima_of_softmax_become_probabilities_row_by_row(trained):
    net = slowfast.load(trained, device="cpu", overrides=["TEST.ADD_SOFTMAX", "True", "DATA.ENSEMBLE_METHOD", "max"])
    found = net.probabilities(np.array([[0.5, 1.5], [0.5, 0.5]]), 2)
    assert found.tolist() == [[0.25, 0.75], [0.5, 0.5]]


def test_a_broken_video_of_a_list_is_named_and_alone_raises(net, paths, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    found = net.predict([str(broken), paths[1]])
    assert found[0].error and not found[0].top and not found[1].error
    assert np.array_equal(found[1].scores, net.predict(paths[1]).scores)
    assert [bool(p.error) for p in net.predict([str(broken), str(broken)])] == [True, True]
    with pytest.raises(MediaError):
        net.predict(broken)


def test_transform_gives_the_clips_of_a_test(net, paths):
    frames = read_frames(paths[0], net.frame_indices)
    with torch.no_grad():
        scores = net.model(net.transform(frames)).sum(0).numpy()
    assert np.allclose(scores, net.predict(paths[0]).scores, atol=1e-5)
    assert net.transform(frames).shape == (6, 3, 4, 32, 32)


def test_a_pickled_network_and_a_copy_predict_the_same(net, paths):
    expected = net.predict(paths[0])
    for other in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        found = other.predict(paths[0])
        assert np.array_equal(found.scores, expected.scores) and found.top == expected.top
        assert other.cfg == net.cfg and other.cfg.is_frozen() and other.model is not net.model


class Scores(Dataset[torch.Tensor]):
    """A data set of a user, whose workers predict."""

    def __init__(self, net, paths):
        self.net, self.paths = net, paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, place):
        return torch.from_numpy(self.net.predict(self.paths[place]).scores)


def test_a_network_predicts_in_a_worker_of_another_data_set(net, paths):
    loader = DataLoader(Scores(net, paths[:2]), num_workers=1, multiprocessing_context="fork")
    found = torch.cat(list(loader)).numpy()
    expected = np.stack([net.predict(path).scores for path in paths[:2]])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_features_are_the_mean_over_views_of_the_input_of_the_classifier(net, paths):
    with torch.no_grad():
        clips = net.transform(read_frames(paths[0], net.frame_indices))
        features = net.model.forward_features(clips)
        pooled = net.model.forward_head(features, pre_logits=True).mean(0).numpy()
    found = net.features(paths[:2])
    assert np.abs(found[0].values - pooled).max() < 1e-5
    assert np.abs(net.features(paths[0], layer="norm").values - pooled).max() < 1e-5
    assert net.features(paths[0], layer="blocks3.0").values.shape == (32,)
    layer = net.layer("blocks3.0")
    for path in paths[:2]:  # found once, the dimensions are those of all videos
        assert np.array_equal(net.features(path, layer).values, net.features(path, "blocks3.0").values)
    with pytest.raises(ValueError, match="tokens"):
        net.features(paths[0], net.layer("blocks3.0", tokens=True))
    assert not net.model.training


@pytest.mark.parametrize("size", [32, 80])  # five patches of a ViT
@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("uniformer_s", {"depth": (1, 1, 1, 1), "embed_dim": (8, 16, 32, 32), "head_dim": 16}, "blocks4.0"),
        ("uniformer_xxs", {}, "blocks4.1"),
        ("uniformerv2", {}, "backbone.transformer.resblocks.1"),
    ],
)
def test_a_layer_of_any_network_gives_one_vector_per_clip(name, options, layer, size):
    if name == "uniformerv2":
        tower = VisionTower(width=32, layers=2, heads=2, patch=16, resolution=32)
        model: Any = UniFormerV2(5, tower, (0, 1), 2).eval()
    else:
        model = create_model(name, num_frames=4, num_classes=5, **options).eval()
    clips = torch.randn(3, 3, 4, size, size)
    with torch.no_grad():
        maps = model.forward_intermediates(clips, indices=1, intermediates_only=True)[0]
        together = LayerFeatures(model, layer)(clips)
        alone = torch.cat([LayerFeatures(model, layer)(clip[None]) for clip in clips])
        pooled = LayerFeatures(model)(clips)
        logits = model.get_submodule(model.classifier_names()[0])(pooled)
    assert together.shape == (3, maps.shape[1]) and torch.allclose(together, alone, atol=1e-5)
    if name != "uniformerv2":  # whose block also has class tokens
        assert torch.allclose(together, maps.flatten(2).mean(2), atol=1e-5)
    assert torch.allclose(logits, model(clips), atol=1e-5)


def test_layers_in_compiled_blocks_are_read(graphs):
    """A prediction of a run with MODEL.COMPILE compiles the blocks, for which PyTorch ignores later hooks."""
    options = {"depth": (1, 1, 1, 1), "embed_dim": (8, 16, 32, 32), "head_dim": 16}
    model: Any = create_model("uniformer_s", num_classes=5, **options).eval()
    clip, layer = torch.randn(1, 3, 4, 64, 64), "blocks3.0.norm1"
    with torch.no_grad():
        expected = LayerFeatures(model, layer)(clip), attention(model, clip, "blocks3.0"), model(clip)
        compile_blocks(model)
        torch.testing.assert_close(model(clip), expected[2])
        assert len(graphs) == 4
        found = LayerFeatures(model, layer)(clip), attention(model, clip, "blocks3.0")
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
        model(clip)
    assert grad_cam(model, clip, layer, 0).shape == (2, 4, 4)
    assert len(graphs) == 4


def test_a_layer_that_a_test_does_not_use_is_an_error():
    model = create_model("uniformer_xxs", num_frames=4, num_classes=5).eval()
    with pytest.raises(ValueError, match="not used"):
        LayerFeatures(model, "head_cls")(torch.randn(1, 3, 4, 32, 32))


def test_frames_of_a_folder_are_a_video(net, write_folder, tmp_path):
    path = write_folder(tmp_path / "frames", 12, net.cfg.DATA.IMAGE_TEMPLATE)
    assert len(net.predict(path).top) == 5
