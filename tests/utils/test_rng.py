"""Random streams are pure functions of their coordinates."""

import subprocess
import sys

import numpy as np
import pytest

from slowfast.utils.rng import random_state_for, rng_for


def test_same_coordinates_give_the_same_draws():
    assert (rng_for(0, 3, "order").permutation(50) == rng_for(0, 3, "order").permutation(50)).all()
    assert (random_state_for(7, 1).rand(5) == random_state_for(7, 1).rand(5)).all()


def test_every_tuple_of_coordinates_is_a_stream_of_its_own():
    tuples = [(), (0,), (1,), (1, 0), (0, 1), (2**32,), (-1,), ("1",), (1, "a"), ("a", 1), ("a1",), ("a", "1"), ("ä",)]
    assert len({rng_for(*coords).random() for coords in tuples}) == len(tuples)
    assert len({random_state_for(*coords).rand() for coords in tuples}) == len(tuples)


def test_numpy_integers_count_as_integers():
    epoch, index = np.array([5, 2]).tolist(), np.array([5, 2])
    assert rng_for(*index).random() == rng_for(*epoch).random()


def test_neighbouring_indices_are_uncorrelated():
    draws = np.array([rng_for(0, 0, index, "temporal").random() for index in range(4000)])
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.05


def test_draws_do_not_depend_on_the_process():
    program = "from slowfast.utils.rng import rng_for; print(repr(float(rng_for(1, 'x', 2).random())))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert float(other) == rng_for(1, "x", 2).random()


def test_other_types_are_refused():
    with pytest.raises(ValueError, match=r"0\.5"):
        rng_for(0, 0.5)  # type: ignore[arg-type]
