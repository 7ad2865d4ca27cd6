"""The benchmark of views measures the frames of small and of large videos."""

from __future__ import annotations

import views


def test_large_frames_are_resized_in_the_worker():
    small, large = (views.measure(height, width, 32, rounds=1) for height, width in ((40, 60), (300, 400)))
    assert small["size"] == "60x40" and small["short_side"] == 32
    assert large["worker_ms"] > small["worker_ms"] and min(small["cut_ms"], large["cut_ms"]) > 0
