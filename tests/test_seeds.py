"""Seeds are stable functions of where they are used."""

from __future__ import annotations

import pytest

from fedspzo.seeds import derive, step_rounding_seed, step_seeds


def test_known_answers():
    """Journals and federations depend on these values: they never change."""
    assert derive(0) == 0x82483FDDC576D3F
    assert derive(0, 1, 2) == 0x9A97CB418F6B1347
    assert derive(2**64 - 1, 0) == 0x18C36EA7487D0F58


def test_every_place_has_its_own_seed():
    places = {
        derive(seed, *path) for seed in range(10) for path in [(), (0,), (1,), (0, 0), (0, 1)]
    }
    assert len(places) == 50
    assert all(0 <= seed < 2**64 for seed in places)


def test_a_steps_seeds_all_differ_and_the_next_steps_too():
    seen = [seed for step in range(4) for block in step_seeds(5, step, (2, 6)) for seed in block]
    seen += [step_rounding_seed(5, step) for step in range(4)]
    assert len(seen) == len(set(seen)) == 4 * (2 + 6 + 1)


def test_more_directions_leave_the_first_ones_seeds():
    one, two = step_seeds(3, 7, (1, 2)), step_seeds(3, 7, (2, 8))
    assert two[0][:1] == one[0]
    assert two[1][:2] == one[1]


@pytest.mark.parametrize("bad", [-1, 2**64, 1.0, "a"])
def test_a_bad_element_is_named(bad):
    with pytest.raises(ValueError, match=r"seed is .*pass an int in \[0, 2\*\*64\)"):
        derive(bad)
    with pytest.raises(ValueError, match=r"path\[1\] is "):
        derive(0, 1, bad)
