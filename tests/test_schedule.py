"""Weights and shares that move over the steps of a run, by hand."""

import pytest

from sdjax.objectives.anchor import NoAnchor, Tempered, TrustRegion
from sdjax.objectives.schedule import Constant, Trapezoid
from sdjax.options import ConfigError


def factors(schedule, num_steps):
  return [schedule.factor(step) for step in range(num_steps)]


def test_a_trapezoid_by_hand():
  # 0 for 2 steps, a third and two thirds, 1 for 2, and down by quarters.
  got = factors(Trapezoid(delay=2, rise=2, hold=2, fall=4), 12)
  want = [0, 0, 1 / 3, 2 / 3, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
  assert got == pytest.approx(want)


def test_without_a_fall_it_stays_at_one():
  got = factors(Trapezoid(delay=1, rise=1), 5)
  assert got == pytest.approx([0, 0.5, 1, 1, 1])
  assert factors(Trapezoid(), 3) == factors(Constant(), 3) == [1, 1, 1]


def test_without_a_rise_it_begins_at_one_and_falls():
  assert factors(Trapezoid(fall=2), 4) == pytest.approx([1, 0.5, 0, 0])


def test_a_hold_that_ends_in_nothing_is_refused():
  with pytest.raises(ConfigError, match=r'hold=3.* does nothing when fall=0'):
    Trapezoid(hold=3)


@pytest.mark.parametrize('name', ['delay', 'rise', 'hold', 'fall'])
def test_steps_are_counts(name):
  with pytest.raises(ConfigError, match=f'{name}=-1.* must be .*at least 0'):
    Trapezoid(**{name: -1})


def test_the_teachers_share_rises_to_one_by_hand():
  # 1/4, and three quarters of it over 3 steps.
  anchor = Tempered(beta=4.0, steps=3)
  got = [anchor.share_at(step) for step in range(5)]
  assert got == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_the_teachers_share_stays():
  assert [Tempered(beta=4.0).share_at(step) for step in (0, 9)] == [0.25] * 2
  assert [TrustRegion(0.1).share_at(step) for step in (0, 9)] == [0.1] * 2
  assert [NoAnchor().share_at(step) for step in (0, 9)] == [1] * 2
