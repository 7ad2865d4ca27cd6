"""Test the frame indices of dense and sparse clips against the official ones."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from slowfast.datasets.sampling import (
    DenseSampler,
    FrameSampler,
    SparseSampler,
    annotated_indices,
    clip_indices,
    sparse_indices,
)


@pytest.fixture(scope="module")
def rows(golden) -> Callable[[str], list[list]]:
    return lambda table: golden("sampling.json.gz")[table]["rows"]


def test_dense_views_match_the_official_indices(rows):
    for use_offset, length, num_frames, rate, num_views, view, expected in rows("dense"):
        indices = DenseSampler(num_frames, num_views, rate, bool(use_offset))(length, view, None)
        assert indices == expected, (use_offset, length, num_frames, rate, num_views, view)


def test_dense_views_at_the_edge_of_float32_match_one_of_the_two_lists(rows):
    for use_offset, length, num_frames, rate, num_views, view, *either in rows("dense_float32_sensitive"):
        assert DenseSampler(num_frames, num_views, rate, bool(use_offset))(length, view, None) in either


def test_sparse_views_match_the_official_indices(rows):
    for length, num_frames, num_views, view, expected in rows("sparse"):
        assert sparse_indices(length, num_frames, view, num_views, None) == expected, (length, num_frames, view)


def test_sparse_views_inside_a_segment_match_the_official_indices(rows):
    for length, first, last, num_frames, num_views, view, expected in rows("sparse_segment_function"):
        assert sparse_indices(length, num_frames, view, num_views, None, first=first, last=last) == expected


def test_something_something_files_are_the_sparse_rule_counted_from_one(rows):
    for _, length, num_frames, num_views, view, expected in rows("something_something"):
        assert [i + 1 for i in sparse_indices(length, num_frames, view, num_views, None)] == expected


def test_hmdb_files_are_the_dense_rule_counted_from_one(rows):
    for mode, length, num_frames, rate, num_views, num_crops, clip, expected, _ in rows("hmdb"):
        view = clip // num_crops if mode == "test" else 0
        assert [i + 1 for i in DenseSampler(num_frames, num_views, rate)(length, view, None)] == expected


def test_random_dense_windows_reach_both_ends_and_start_between_frames():
    rng = np.random.default_rng(0)
    clips = np.array([DenseSampler(8, 1, 4)(100, None, rng) for _ in range(3000)])
    assert clips.min() == 0 and clips[:, 0].max() == 67 and clips.max() == 98  # starts are below the slack
    assert np.bincount(clips[:, 0], minlength=68).min() > 15  # 3000 / 68 = 44 expected of each
    assert len(np.unique(np.diff(clips, axis=1), axis=0)) > 1  # whole starts would give one pattern


def test_random_dense_window_of_a_short_video_starts_at_zero_and_repeats_the_last_frame():
    assert DenseSampler(4, 1, 4)(5, None, np.random.default_rng(0)) == [0, 4, 4, 4]


def test_random_sparse_frames_cover_each_segment_and_both_borders():
    rng = np.random.default_rng(0)
    clips = np.array([sparse_indices(41, 4, None, 1, rng) for _ in range(3000)])
    for column, border in zip(clips.T, (0, 10, 20, 30), strict=True):
        assert Counter(column).keys() == set(range(border, border + 11))
        assert np.bincount(column - border).min() > 3000 / 11 * 0.7
    assert (np.diff(clips, axis=1) == 0).any()  # neighbours share a border


def test_annotated_indices_stay_inside_the_annotation_and_the_video():
    rng = np.random.default_rng(0)
    clips = np.array([annotated_indices(300, 8, (10.0, 3.0, 6.0), rng) for _ in range(500)])
    assert clips.min() == 90 and clips.max() == 179
    assert np.array(annotated_indices(300, 8, (10.0, 9.0, 12.0), rng)).max() == 299  # the list is longer than the video
    assert set(annotated_indices(300, 8, (10.0, 2.0, 2.0), rng)) == {60}


def test_the_sparse_sampler_follows_its_rule_for_views_and_draws():
    sparse = SparseSampler(8, 3)
    assert [sparse(100, view, None) for view in range(3)] == [sparse_indices(100, 8, v, 3, None) for v in range(3)]
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    assert sparse(100, None, first) == sparse_indices(100, 8, None, 3, second)


@pytest.mark.parametrize("sampler", [DenseSampler(8), SparseSampler(8)])
def test_a_video_without_frames_is_refused(sampler):
    with pytest.raises(ValueError, match=r"a video of 0\b"):
        clip_indices(sampler, 0, 0, None)


@pytest.mark.parametrize("clip", [[0, 1], [0, 1, 5], [-1, 0, 1], [], np.arange(4), np.arange(3) / 2, None])
def test_a_sampler_must_return_the_frames_of_one_clip(clip):
    class Own(FrameSampler):
        def __call__(self, length, view, rng):
            return clip

    with pytest.raises(ValueError, match=r"^Own .* of 5: .* 3 .* 4$"):
        clip_indices(Own(3), 5, 0, None)


def test_a_sampler_may_return_an_array():
    class Own(FrameSampler):
        def __call__(self, length, view, rng):
            return np.arange(self.num_frames)  # pyright: ignore[reportReturnType]

    assert clip_indices(Own(3), 5, 0, None) == [0, 1, 2]
