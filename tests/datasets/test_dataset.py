"""Test the batches of the video data sets: augmented copies, evaluation views, and broken videos."""

import os

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from slowfast.datasets.dataset import TrainDataset, VideoEvalDataset, VideoReader, as_made
from slowfast.datasets.lists import VideoList
from slowfast.datasets.reader import MediaError
from slowfast.datasets.sampling import DenseSampler, SparseSampler, sparse_indices
from slowfast.datasets.transforms import TrainTransform

WHOLE = TrainTransform(48, (48, 48), flip=False)  # only a random position along the width


@pytest.fixture(scope="module")
def videos(tmp_path_factory, write_video) -> list[str]:
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"{length}.mp4", frames=length) for length in (30, 35, 40, 45)]


@pytest.fixture
def some_broken(videos, tmp_path) -> VideoList:
    """Return a list whose rows 1 and 2 are broken."""
    (tmp_path / "text.mp4").write_text("no video")
    return VideoList([videos[0], str(tmp_path / "gone.mp4"), str(tmp_path / "text.mp4"), videos[3]], [5, 6, 7, 8])


def sparse(num_frames: int, **options) -> VideoReader:
    return VideoReader(SparseSampler(num_frames), **options)


def numbers(frame_numbers, clip: torch.Tensor) -> list[int]:
    return frame_numbers(clip.permute(1, 2, 3, 0).numpy())


def test_training_items_are_augmented_copies_of_the_same_frames(videos, frame_numbers):
    dataset = TrainDataset(VideoList(videos, [3, 1, 2, 0]), sparse(4), WHOLE, num_copies=5)
    item = dataset[(0, 2)]
    video = item["video"]
    assert video.shape == (5, 3, 4, 48, 48) and video.dtype == torch.uint8
    assert item["label"].tolist() == [2] * 5 and item["index"].tolist() == [2] * 5
    assert item["view"].tolist() == [0, 1, 2, 3, 4] and item["label"].dtype == item["index"].dtype == torch.int64
    assert item["bad"] == []
    first, *others = item["video"]
    assert any(not torch.equal(first, other) for other in others)
    median = video.float().median(-1).values.median(-1).values[:, 2]  # blue: 10 + 4 t, or 10 less
    assert (median.amax(0) - median.amin(0) <= 11).all()


def test_training_items_depend_only_on_seed_epoch_and_row(videos):
    def dataset(seed: int = 0) -> TrainDataset:
        reader = VideoReader(DenseSampler(4, sampling_rate=2))
        return TrainDataset(VideoList(videos, [0] * 4), reader, WHOLE, seed=seed)

    one, two = dataset(), dataset()
    for before in ((0, 3), (1, 1)):
        assert two[before]["view"].tolist() == [0]
    assert torch.equal(one[(2, 1)]["video"][0], two[(2, 1)]["video"][0])
    different = [one[(0, 1)], one[(1, 1)], one[(0, 3)], dataset(seed=1)[(0, 1)]]
    assert len({item["video"][0].numpy().tobytes() for item in different}) == 4


def clips(batch: dict) -> torch.Tensor:
    """Return the clips of an evaluation, (V, C, T, H, W)."""
    return batch["video"].cut()


def test_annotated_segments_bound_training_and_not_evaluation(videos, frame_numbers):
    samples = VideoList([videos[2]], [0], segments=[(4.0, 1.0, 2.0)])
    training = TrainDataset(samples, sparse(4), WHOLE)
    seen = {n for epoch in range(12) for n in numbers(frame_numbers, training[(epoch, 0)]["video"][0])}
    assert min(seen) >= 10 and max(seen) < 20
    evaluation = VideoEvalDataset(samples, sparse(4), scale=48, crop=48)
    assert numbers(frame_numbers, clips(evaluation[(0, 0)])[0]) == sparse_indices(40, 4, 0, 1, None)


def test_evaluation_clips_are_views_times_crops(videos, frame_numbers):
    reader = VideoReader(DenseSampler(4, 3, 3))
    dataset = VideoEvalDataset(VideoList(videos, [3, 1, 2, 0]), reader, num_crops=3, scale=48, crop=48)
    item = dataset[(0, 1)]
    video = clips(item)
    assert video.shape == (9, 3, 4, 48, 48) and item["view"].tolist() == list(range(9))
    assert item["label"].tolist() == [1] * 9 and item["index"].tolist() == [1] * 9
    for view in range(3):
        expected = reader.sampler(35, view, None)
        start, centre, end = video[3 * view : 3 * view + 3]
        assert numbers(frame_numbers, start) == numbers(frame_numbers, centre) == expected
        for offset, crop in ((0, start), (8, centre), (16, end)):
            assert torch.equal(crop[..., : 48 - offset], start[..., offset:])
    assert torch.equal(video, clips(dataset[(7, 1)]))


def test_a_single_crop_is_the_centre_and_resized_clips_are_float(videos):
    samples = VideoList(videos[:1], [0])
    three = clips(VideoEvalDataset(samples, sparse(2), num_crops=3, scale=32, crop=32)[(0, 0)])
    one = clips(VideoEvalDataset(samples, sparse(2), scale=32, crop=32)[(0, 0)])
    assert one.shape == (1, 3, 2, 32, 32) and one.dtype == torch.float32 and one.max() > 2
    assert torch.equal(one[0], three[1])


def test_frame_folders_keep_their_colors_until_reversed(tmp_path, write_folder):
    samples = VideoList([write_folder(tmp_path / "clip", frames=12)], [0], num_frames=[12])

    def clip(colors: str, **options) -> torch.Tensor:
        return clips(VideoEvalDataset(samples, sparse(2, colors=colors), scale=48, crop=48, **options)[(0, 0)])

    bgr, rgb = clip(colors="BGR"), clip(colors="RGB")
    assert (rgb[:, 0].float() - rgb[:, 2].float()).mean() > 30
    assert torch.equal(bgr, rgb.flip(1)) and torch.equal(clip(colors="BGR", reverse_channels=True), rgb)


def test_shuffled_frames_are_the_same_frames_in_another_order(videos, frame_numbers):
    reader = VideoReader(SparseSampler(8, 2))

    def dataset_of(shuffle_frames: bool) -> VideoEvalDataset:
        samples = VideoList(videos, [0] * 4)
        return VideoEvalDataset(samples, reader, num_crops=3, scale=48, crop=48, shuffle_frames=shuffle_frames)

    ordered, dataset = clips(dataset_of(False)[(0, 1)]), dataset_of(True)
    shuffled = clips(dataset[(0, 1)])
    orders = [numbers(frame_numbers, clip) for clip in shuffled]
    assert orders[0] == orders[1] == orders[2] != orders[3]
    for clip, order in zip(ordered, orders, strict=True):
        assert sorted(order) == numbers(frame_numbers, clip) != order
    assert torch.equal(shuffled, clips(dataset[(3, 1)]))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_batch_holds_the_clips_of_its_rows_in_order(videos, reverse):
    keys = [(3, 2), (3, 0), (4, 1)]
    samples, reader = VideoList(videos, [4, 5, 6, 7]), VideoReader(DenseSampler(4))
    dataset = TrainDataset(samples, reader, WHOLE, num_copies=2, reverse_channels=reverse)
    batch = dataset.__getitems__(keys)
    assert torch.equal(batch["video"], torch.cat([dataset[key]["video"] for key in keys]))
    assert batch["index"].tolist() == [2, 2, 0, 0, 1, 1] and batch["label"].tolist() == [6, 6, 4, 4, 5, 5]
    assert batch["view"].tolist() == [0, 1] * 3
    (sent,) = DataLoader(dataset, batch_sampler=[keys], collate_fn=as_made, num_workers=1)
    assert torch.equal(sent["video"], batch["video"]) and sent["video"].stride() == batch["video"].stride()
    straight = TrainDataset(samples, reader, WHOLE, num_copies=2).__getitems__(keys)["video"]
    assert torch.equal(batch["video"], straight.flip(1) if reverse else straight)


def test_a_broken_training_video_is_replaced_and_reported(some_broken):
    dataset = TrainDataset(some_broken, sparse(2), WHOLE)
    rows, most = set(), 0
    for epoch in range(20):
        item = dataset[(epoch, 1)]
        row = item["index"].item()
        assert item["label"].item() == {0: 5, 3: 8}[row]
        assert item["bad"][0][0].endswith("gone.mp4") and "no such file" in item["bad"][0][1]
        assert torch.equal(item["video"][0], dataset[(epoch, 1)]["video"][0])
        rows.add(row)
        most = max(most, len(item["bad"]))
    assert rows == {0, 3} and most >= 2
    assert dataset[(0, 0)]["bad"] == []


def test_training_stops_when_nothing_decodes(tmp_path):
    dataset = TrainDataset(VideoList([str(tmp_path / f"{n}.mp4") for n in range(3)], [0] * 3), sparse(2), WHOLE)
    with pytest.raises(MediaError, match=r"\b10\b") as caught:
        dataset[(0, 0)]
    assert [str(caught.value).count(f"{n}.mp4: no such file") for n in range(3)] == [1] * 3


def test_an_evaluation_never_substitutes(some_broken):
    dataset = VideoEvalDataset(some_broken, sparse(2), num_crops=3, scale=32, crop=32)
    item = dataset[(0, 1)]
    assert item["video"].frames == [] and item["label"].shape == item["view"].shape == (0,)
    assert len(item["bad"]) == 1 and item["bad"][0][0].endswith("gone.mp4")

    batch = dataset.__getitems__([(0, index) for index in range(4)])
    assert clips(batch).shape == (6, 3, 2, 32, 32) and {frames.dtype for frames in batch["video"].frames} == {
        torch.uint8
    }
    assert batch["label"].tolist() == [5] * 3 + [8] * 3 and batch["index"].tolist() == [0] * 3 + [3] * 3
    assert batch["view"].tolist() == [0, 1, 2] * 2 and len(batch["bad"]) == 2
    assert item["index"].dtype == item["label"].dtype == torch.int64


def test_official_test_clips_are_reproduced(golden, tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", frames=60, height=32, width=40)
    rows = golden("sampling.json.gz")["dataset_paths"]["rows"]
    tests = [row for row in rows if row["mode"] == "test" and "clips" in row]  # the others crash, or are random
    assert len(tests) > 20
    for row in tests:
        dense = row["dataset_class"] in ("Kinetics", "Hmdb")
        sampler = (DenseSampler if dense else SparseSampler)(8, row["num_ensemble_views"], 8)
        options = {"num_crops": row["num_spatial_crops"], "scale": 32, "crop": 32}
        dataset = VideoEvalDataset(VideoList([path], [0]), VideoReader(sampler), **options)
        chosen = dataset.frame_indices(100, 0)
        clips = np.repeat(np.reshape(chosen, (-1, 8)), row["num_spatial_crops"], axis=0)
        shift = row["dataset_class"] in ("Sth", "Hmdb")  # these data sets number files from 1
        assert (clips + shift).tolist() == [clip[3] for clip in row["clips"]], row["dataset_class"]
        assert dataset[(0, 0)]["view"].tolist() == [clip[0] for clip in row["clips"]]


def test_a_video_that_blocks_its_decoder_is_broken(videos, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    samples = VideoList([str(tmp_path / "pipe.mp4"), videos[0]], [1, 2])
    reader = sparse(2, decode_timeout=2)
    item = TrainDataset(samples, reader, WHOLE)[(0, 0)]
    assert item["index"].tolist() == [1] and item["label"].tolist() == [2]
    assert all(reason.startswith("decoding took longer than 2 s") for _, reason in item["bad"])
    item = VideoEvalDataset(samples, reader, scale=32, crop=32)[(0, 0)]
    assert item["video"].frames == [] and len(item["bad"]) == 1
