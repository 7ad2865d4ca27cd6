"""Ways to name a trained network, and the errors of those that do not lead to one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from make_demo_data import CLASS_NAMES

import slowfast
from slowfast.config import ConfigError, dump_config, load_config
from slowfast.models.zoo import create_model
from slowfast.weights.tensors import load_tensors


def with_values(cfg, values: dict[str, str]) -> str:
    """Return a configuration with values that this package does not have, as a run with an extension records it."""
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in values.items():
        section, _, name = key.partition(".")
        cfg[section][name] = value
    return dump_config(cfg)


def same(net, other) -> bool:
    mine, theirs = net.model.state_dict(), other.model.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_a_folder_of_a_run_is_loaded_with_its_best_weights_classes_and_views(net, trained):
    best = load_tensors(trained / "checkpoints/best.pyth")["model_state"]
    assert all(torch.equal(value, best[name]) for name, value in net.model.state_dict().items())
    assert net.class_names == list(CLASS_NAMES)
    assert net.num_views == 6 and not net.model.training
    assert net.cfg.is_frozen()


def test_a_moved_folder_and_a_checkpoint_alone_are_the_same_network(net, trained, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    alone = tmp_path / "alone.pyth"
    shutil.copy(trained / "checkpoints/best.pyth", alone)
    (moved / "resolved_config.yaml").unlink()
    shutil.rmtree(moved / "test")
    for source in (moved, alone):
        other = slowfast.load(source, device="cpu")
        assert same(net, other) and other.class_names == net.class_names and other.num_views == 6


def test_a_checkpoint_with_a_data_set_of_an_extension_is_refused_without_it(trained, tmp_path):
    alone, entries = tmp_path / "alone.pyth", torch.load(trained / "checkpoints/best.pyth")
    entries["cfg"] = entries["cfg"].replace("DATASET: kinetics_sparse", "DATASET: drones")
    torch.save(entries, alone)
    with pytest.raises(ConfigError) as error:
        slowfast.load(alone, device="cpu")
    assert [fault.partition(" = ")[0].split()[-1] for fault in error.value.faults] == ["TEST.DATASET"]
    slowfast.load(alone, device="cpu", overrides=["TEST.DATASET", "kinetics_sparse"])


def test_values_that_only_a_training_uses_need_no_extension(net, trained, tmp_path):
    own = {"TRAIN.DATASET": "drones", "MODEL.LOSS_FUNC": "focal", "SOLVER.LR_POLICY": "triangle"}
    moved, alone = tmp_path / "moved", tmp_path / "alone.pyth"
    shutil.copytree(trained, moved)
    entries = torch.load(trained / "checkpoints/best.pyth")
    entries["cfg"] = with_values(net.cfg, own)
    (moved / "resolved_config.yaml").write_text(entries["cfg"])
    torch.save(entries, alone)
    for source in (moved, alone):
        other = slowfast.load(source, device="cpu")
        assert same(net, other)
        other.save_pretrained(tmp_path / "shared")
        assert slowfast.load(tmp_path / "shared", device="cpu").cfg.MODEL.LOSS_FUNC == "focal"
    with pytest.raises(ConfigError) as error:
        load_config(moved / "resolved_config.yaml")
    assert {fault.partition(" = ")[0].split()[-1] for fault in error.value.faults} == {*own}


def test_random_numbers_after_a_load_are_those_without_it(trained):
    state = torch.random.get_rng_state()
    slowfast.load(trained, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.fixture
def released(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("SLOWFAST_HOME", str(tmp_path))
    path = tmp_path / "uniformer_xxs4_128_k400.pth"
    torch.save(dict(create_model("uniformer_xxs", num_classes=400, init_value=0.1).state_dict()), path)
    return path


def test_class_names_give_the_order_of_the_outputs_of_released_weights(released):
    net = slowfast.load(released, device="cpu")
    assert net.class_names and net.class_names != sorted(net.class_names)
    other = slowfast.load(released, device="cpu", class_names=sorted(net.class_names))
    rows = [net.class_names.index(name) for name in other.class_names or ()]
    weights = [each.model.get_parameter("head.weight") for each in (net, other)]
    assert torch.equal(weights[1], weights[0][rows])


def test_overrides_change_the_views(trained):
    assert slowfast.load(trained, device="cpu", overrides=["TEST.NUM_ENSEMBLE_VIEWS", "1"]).num_views == 3


def test_overrides_must_fit_the_other_values(trained):
    for source in (trained, trained / "checkpoints/best.pyth"):
        with pytest.raises(ConfigError, match=r"DATA\.MEAN = \[0\.5\], DATA\.STD"):
            slowfast.load(source, device="cpu", overrides=["DATA.MEAN", "[0.5]"])


def test_released_weights_bring_the_experiment_that_uses_them(released):
    for source in ("uniformer_xxs4_128_k400", released):
        net = slowfast.load(source, device="cpu")
        assert (net.cfg.DATA.NUM_FRAMES, net.cfg.DATA.TEST_CROP_SIZE) == (4, 128)
        assert net.class_names and len(net.class_names) == 400 and "abseiling" in net.class_names


def test_weights_without_a_configuration_need_the_experiment(monkeypatch, tmp_path):
    path = tmp_path / "mine.pth"
    torch.save(dict(create_model("uniformer_xxs", num_classes=400, init_value=0.1).state_dict()), path)
    with pytest.raises(ValueError, match="experiment"):
        slowfast.load(path, device="cpu")
    net = slowfast.load(path, "uniformer_xxs4_128_k400", device="cpu")
    assert net.cfg.DATA.NUM_FRAMES == 4
    with pytest.raises(ValueError, match="meant 'uniformer_xxs4_128_k400'"):
        slowfast.load(path, "uniformer_xxs4_128_k40", device="cpu")


@pytest.mark.parametrize("source", ["missing.pyth", "folder", "uniformer_s16x4_k4000", "clip_vit_b16"])
def test_a_source_without_a_network_is_one_clear_error(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(ValueError) as error:
        slowfast.load(source, device="cpu")
    assert source in str(error.value)
