"""Test folders of still images: lists, decoding as in Pillow, augmentation, and batches like those of videos."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode

from slowfast.config import get_cfg
from slowfast.config.rules import broken_rules
from slowfast.datasets.build import build_dataset, build_loader
from slowfast.datasets.dataset import ImageEvalDataset, ImageReader, TrainDataset
from slowfast.datasets.image import ImageTransform, centre_view, read_image
from slowfast.datasets.image_folder import load_image_folder
from slowfast.datasets.lists import ListError
from slowfast.datasets.mixup import MixUp
from slowfast.datasets.rand_augment import RandAugment
from slowfast.datasets.reader import MediaError
from slowfast.datasets.transforms import RandomErasing
from slowfast.utils.rng import rng_for

WHOLE = ImageTransform(32, (1.0, 1.0), (1.0, 1.0), flip=False)


def picture(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    """Draw smooth colours with sharp edges, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    image[height // 3 : height // 2, width // 4 :] = rng.integers(0, 256, 3)
    return image


@pytest.fixture
def folder(tmp_path) -> Path:
    """Make a folder with 3 cats, 2 dogs and 1 eel for training, and one of each for validation."""
    for split, counts in (("train", {"dog": 2, "cat": 3, "eel": 1}), ("val", {"cat": 1, "dog": 1, "eel": 1})):
        for label, (name, count) in enumerate(counts.items()):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                path = tmp_path / split / name / f"{number}.{'JPEG' if number else 'png'}"
                Image.fromarray(picture(seed=10 * label + number)).save(path)
    return tmp_path


def test_labels_count_the_sorted_folders(folder):
    (folder / "train/cat/notes.txt").write_text("no image")
    (folder / "train/cat/._0.png").write_text("nor is this")
    (folder / "train/.cache").mkdir()
    (folder / "train/README").write_text("nor is this a class")
    samples = load_image_folder(folder, "train", num_classes=3)
    assert samples.class_names == ["cat", "dog", "eel"]
    assert samples.labels.tolist() == [0, 0, 0, 1, 1, 2]
    root = f"{folder}/train"
    assert [samples.path(row) for row in range(6)] == [
        *(f"{root}/cat/0.png", f"{root}/cat/1.JPEG", f"{root}/cat/2.JPEG"),
        *(f"{root}/dog/0.png", f"{root}/dog/1.JPEG", f"{root}/eel/0.png"),
    ]
    assert len(load_image_folder(folder, "val")) == 3


def test_a_folder_with_one_split_can_be_read(folder):
    (folder / "train").rename(folder / "elsewhere")
    assert load_image_folder(folder, "val").labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["class_names.txt", "LOC_synset_mapping.txt"])
def test_a_file_gives_the_folders_names(folder, name):
    (folder / name).write_text("eel Anguilla anguilla\ncat Felis catus, house cat\n\ndog\nfox Vulpes\n")
    assert load_image_folder(folder, "train").class_names == ["Felis catus, house cat", "dog", "Anguilla anguilla"]
    (folder / name).write_bytes("cat chat\ndog pinscher n\u00e4in\neel anguille\n".encode("latin-1"))
    assert load_image_folder(folder, "train").class_names == ["chat", "pinscher n\udce4in", "anguille"]
    (folder / name).write_text("cat Felis catus\neel Anguilla anguilla\n")
    with pytest.raises(ListError, match=rf"{name} .*2 of 3 .*dog"):
        load_image_folder(folder, "train")


def test_a_wrong_folder_is_refused(folder, tmp_path):
    with pytest.raises(ListError, match=r"no folder .*/nowhere/train "):
        load_image_folder(tmp_path / "nowhere", "train")
    with pytest.raises(ListError, match=r"has 3 class folders \(cat, dog, eel\).* 1000\b"):
        load_image_folder(folder, "train", num_classes=1000)
    (folder / "val/fox").mkdir()
    for split in ("train", "val"):
        with pytest.raises(ListError, match=r"differ in 1 class folders \(fox\)"):
            load_image_folder(folder, split)
    (folder / "train/fox").mkdir()
    with pytest.raises(ListError, match=r"1 of 4 .*/train .*fox"):
        load_image_folder(folder, "train")
    (folder / "empty").mkdir()
    with pytest.raises(ListError, match="empty holds no images"):
        load_image_folder(folder, "empty")


def test_every_kind_of_image_is_read_as_by_pillow(tmp_path):
    image = Image.fromarray(picture())
    grey16 = Image.fromarray((np.arange(40 * 56, dtype=np.uint16) * 29).reshape(40, 56))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.convert("L").save(tmp_path / "grey.jpg")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    image.convert("LA").save(tmp_path / "grey_alpha.png")
    image.convert("P").save(tmp_path / "palette.png")
    image.convert("P").save(tmp_path / "transparent.png", transparency=3)
    image.convert("1").save(tmp_path / "bits.png")
    grey16.save(tmp_path / "grey16.png")
    cv2.imwrite(str(tmp_path / "color16.png"), picture().astype(np.uint16) * 257)
    image.save(tmp_path / "lossy.webp")
    image.save(tmp_path / "bitmap.bmp")
    for path in sorted(tmp_path.iterdir()):
        found = read_image(str(path))
        assert found.shape == (40, 56, 3) and found.dtype == np.uint8, path
        with Image.open(path) as expected:
            assert np.array_equal(found, np.asarray(expected.convert("RGB"))), path


def test_the_error_names_a_file_that_is_not_an_image(tmp_path):
    image = Image.fromarray(picture(200, 300))
    image.save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "short.jpg").write_bytes(content[: len(content) // 2])
    image.save(tmp_path / "whole.png")
    content = bytearray((tmp_path / "whole.png").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "flipped.png").write_bytes(content)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("short.jpg", "flipped.png", "empty.jpg", "text.jpg", "gone.jpg"):
        with pytest.raises(MediaError, match="not a readable image") as caught:
            read_image(str(tmp_path / name))
        assert caught.value.path == str(tmp_path / name)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (300, 300), (90, 131), (257, 1000), (256, 301)])
@pytest.mark.parametrize(("scale", "crop"), [(256, 224), (182, 160)])
def test_the_centre_view_is_that_of_torchvision(size, scale, crop):
    image = picture(*size)
    reference = transforms.Compose(
        [transforms.Resize(scale, interpolation=InterpolationMode.BICUBIC), transforms.CenterCrop(crop)]
    )
    expected = np.asarray(reference(Image.fromarray(image))).astype(int)
    assert np.abs(centre_view(image, scale, crop) - expected).max() <= 1


def test_a_random_resized_crop_averages_like_pillow():
    image = picture(200, 300)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
    wide = ImageTransform(32, (1.0, 1.0), (1.5, 1.5), flip=False)  # the whole image
    assert np.array_equal(wide(image, rng_for(0)), expected)
    flipped = [ImageTransform(32, (1.0, 1.0), (1.5, 1.5))(image, rng_for(seed)) for seed in range(200)]
    count = sum(np.array_equal(view, expected[:, ::-1]) for view in flipped)
    assert 70 < count < 130 and count + sum(np.array_equal(view, expected) for view in flipped) == 200


def test_augmentation_leaves_the_decoded_image_alone():
    image = picture(100, 80)
    before = image.copy()
    transform = ImageTransform(
        48,
        (0.08, 1.0),
        (0.75, 1.3333),
        rand_augment=RandAugment.parse("rand-m9-mstd0.5-inc1"),
        erase=RandomErasing(1.0),
    )
    views = [transform(image, rng_for(seed)) for seed in range(30)]
    assert np.array_equal(image, before)
    assert all(view.shape == (48, 48, 3) and view.dtype == np.uint8 for view in views)
    assert len({view.tobytes() for view in views}) == 30
    assert all(np.array_equal(view, transform(image, rng_for(seed))) for seed, view in enumerate(views))


def test_items_are_those_of_videos_without_time(folder):
    samples = load_image_folder(folder, "train")
    dataset = TrainDataset(samples, ImageReader(), ImageTransform(32, (0.3, 1.0), (0.75, 1.3333)), num_copies=3)
    item = dataset[(0, 4)]
    assert item["video"].shape == (3, 3, 32, 32) and item["video"].dtype == torch.uint8
    assert item["label"].tolist() == [1] * 3 and item["index"].tolist() == [4] * 3
    assert item["view"].tolist() == [0, 1, 2] and item["bad"] == [] and len(dataset) == 6
    assert torch.equal(item["video"], dataset[(0, 4)]["video"])
    assert len({dataset[(epoch, 4)]["video"][v].numpy().tobytes() for epoch in (0, 1) for v in range(3)}) == 6

    centre = ImageEvalDataset(samples, scale=36, crop=32)[(7, 4)]
    expected = centre_view(read_image(samples.path(4)), 36, 32)
    assert np.array_equal(centre["video"][0].permute(1, 2, 0).numpy(), expected)
    reverse = ImageEvalDataset(samples, scale=36, crop=32, reverse_channels=True)[(0, 4)]
    assert torch.equal(reverse["video"][0], centre["video"][0].flip(0))
    batch = ImageEvalDataset(samples, scale=36, crop=32).__getitems__([(0, index) for index in range(6)])
    assert batch["video"].shape == (6, 3, 32, 32)
    assert batch["video"].is_contiguous(memory_format=torch.channels_last)
    assert batch["label"].tolist() == [0, 0, 0, 1, 1, 2]


def test_a_broken_image_is_reported(folder):
    (folder / "train/cat/1.JPEG").write_text("no image")
    samples = load_image_folder(folder, "train")
    for dataset in (TrainDataset(samples, ImageReader(), WHOLE), ImageEvalDataset(samples, scale=36, crop=32)):
        item = dataset[(0, 1)]
        assert [path for path, _ in item["bad"]] == [f"{folder}/train/cat/1.JPEG"]
        assert len(item["video"]) == len(item["label"]) == isinstance(dataset, TrainDataset)


def test_mixup_takes_images():
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    for seed in range(6):
        mix = MixUp(0.8, 1.0, 1.0, 0.5, 0.1, 3)
        mixed, target = mix(images, labels, np.random.RandomState(seed))
        as_video, same = mix(images[:, :, None], labels, np.random.RandomState(seed))
        assert torch.equal(mixed, as_video[:, :, 0]) and torch.equal(target, same) and not torch.equal(mixed, images)


@pytest.fixture
def make_cfg(folder):
    def make(*overrides):
        cfg = get_cfg()
        cfg.merge_from_list(
            [
                *("TRAIN.DATASET", "imagenet", "TEST.DATASET", "imagenet", "MODEL.NUM_CLASSES", 3),
                *("TEST.NUM_ENSEMBLE_VIEWS", 1, "TEST.NUM_SPATIAL_CROPS", 1, "MODEL.MODEL_NAME", "Uniformer_image"),
                *("DATA.PATH_TO_DATA_DIR", str(folder), "DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 36),
                *("DATA.TRAIN_JITTER_SCALES_RELATIVE", [0.3, 1.0]),
                *("DATA.TRAIN_JITTER_ASPECT_RELATIVE", [0.75, 1.3333]),
                *("TRAIN.BATCH_SIZE", 2, "AUG.ENABLE", True, "AUG.NUM_SAMPLE", 3, "DATA_LOADER.NUM_WORKERS", 0),
                *overrides,
            ]
        )
        cfg.freeze()
        return cfg

    return make


def test_the_configuration_is_followed(make_cfg, folder):
    dataset = build_dataset(make_cfg("DATA.RANDOM_FLIP", False), "train")
    assert isinstance(dataset, TrainDataset) and dataset.num_copies == 3
    assert dataset.transform == ImageTransform(
        32, (0.3, 1.0), (0.75, 1.3333), False, RandAugment.parse("rand-m9-mstd0.5-inc1"), RandomErasing(0.25)
    )
    plain = build_dataset(make_cfg("AUG.ENABLE", False), "train")
    assert isinstance(plain, TrainDataset) and plain.num_copies == 1
    assert plain.transform == ImageTransform(32, (0.3, 1.0), (0.75, 1.3333))
    for size, scale in ((28, 32), (224, 256), (160, 182), (384, 438)):
        test = build_dataset(make_cfg("DATA.TEST_CROP_SIZE", size), "test")
        assert isinstance(test, ImageEvalDataset) and (test.scale, test.crop) == (scale, size) and len(test) == 3
    assert test.samples.prefix == str(folder / "val")
    jitter = ("DATA.TRAIN_JITTER_SCALES_RELATIVE", [], "DATA.TRAIN_JITTER_ASPECT_RELATIVE", [])
    with pytest.raises(ValueError, match=r"DATA\.TRAIN_JITTER_SCALES_RELATIVE"):
        build_dataset(make_cfg(*jitter), "train")


def test_batches_hold_the_copies_of_their_images(make_cfg):
    here = list(build_loader(make_cfg(), "train"))
    assert len(here) == 3
    for batch, other in zip(here, build_loader(make_cfg("DATA_LOADER.NUM_WORKERS", 1), "train"), strict=True):
        assert batch["video"].shape == (6, 3, 32, 32) and batch["video"].dtype == torch.uint8
        assert batch["index"][::3].tolist() == batch["index"][2::3].tolist()
        assert torch.equal(batch["video"], other["video"]) and torch.equal(batch["label"], other["label"])
    (batch, last) = build_loader(make_cfg(), "val")
    assert batch["index"].tolist() == [0, 1] and last["video"].shape == (1, 3, 36, 36)


@pytest.mark.parametrize(
    "overrides",
    [
        ("TEST.NUM_ENSEMBLE_VIEWS", 4),
        ("TEST.NUM_SPATIAL_CROPS", 3),
        ("TEST.SHUFFLE_FRAMES", True),
        ("TEST.DATASET", "kinetics"),
        ("TRAIN.DATASET", "kinetics"),
        ("MODEL.MODEL_NAME", "Uniformer"),
    ],
)
def test_settings_that_images_do_not_have_are_refused(make_cfg, overrides):
    assert not list(broken_rules(make_cfg("NUM_GPUS", 0, "SOLVER.BASE_LR", 0.1)))
    assert any(overrides[0] in keys for keys, _ in broken_rules(make_cfg("NUM_GPUS", 0, *overrides)))
