"""A step called without options does what a config without changes does."""

import inspect

import pytest

from sdjax.config import schema as c
from sdjax.feedback import rewards
from sdjax.steps import mix, rl, sd, teacher, update, view
from sdjax.steps.sampling import Sampling

TEACHER, REWARDS = c.SelfDistillation(), c.PolicyGradient()
COMMON = (c.Loss(), c.Rollout())

CALLED = {
  sd.signal_step: (TEACHER, *COMMON),
  sd.token_loss: (TEACHER,),
  sd.loss: (TEACHER, *COMMON),
  sd.distilled: (TEACHER, *COMMON),
  teacher.comparison: (TEACHER, *COMMON),
  teacher.teacher_tokens: (TEACHER, *COMMON),
  rl.signal_step: (REWARDS, *COMMON),
  rl.token_loss: (REWARDS,),
  rl.loss: (REWARDS, *COMMON),
  rl.adapt_clip: COMMON,
  mix.signal_step: (c.Mix(), TEACHER, REWARDS, *COMMON),
  mix.loss: COMMON,
  view.new_signal: COMMON,
  view.student_view: COMMON,
  update.gradient: (c.Loss(), c.Train()),
  update.update_step: (c.Loss(), c.Train()),
  Sampling: (c.Rollout(),),
  rewards.gather: (REWARDS,),
}

ONE_OF_MANY = {
  # Alone, a set of one: the reward itself.
  (rewards.gather, 'pass_k'),
}


@pytest.mark.parametrize('function', CALLED, ids=lambda f: f.__qualname__)
def test_defaults_are_those_of_a_config(function):
  found = 0
  for name, parameter in inspect.signature(function).parameters.items():
    said = [getattr(s, name) for s in CALLED[function] if hasattr(s, name)]
    if parameter.default is parameter.empty or not said:
      continue
    found += 1
    if (function, name) not in ONE_OF_MANY:
      assert parameter.default == said[0], name
      assert type(parameter.default) is type(said[0]), name
  assert found


def test_what_no_config_says_is_off_by_default():
  """The reference is there; nothing is contrasted, anchored or repeated."""
  for function in (sd.signal_step, mix.signal_step):
    options = inspect.signature(function).parameters
    assert options['with_ref_kl'].default is True
    assert options['anchor'].default == 'none'
    assert options['teacher_share'].default == 1
  for function in (sd.signal_step, rl.signal_step, view.new_signal):
    assert inspect.signature(function).parameters['recompute'].default is False
  assert inspect.signature(mix.signal_step).parameters['recompute'].default is (
    False
  )
  assert inspect.signature(mix.signal_step).parameters[
    'num_contrast'
  ].default == len(())
  options = inspect.signature(update.update_step).parameters
  assert (options['ema_rate'].default, options['ema_every'].default) == (0, 1)
