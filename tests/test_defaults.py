"""A step called without options does what a config without changes does."""

import inspect

import pytest

from sdjax.config import schema as c
from sdjax.feedback import demonstrations, rewards
from sdjax.feedback.strategies import Demonstrations
from sdjax.methods import shared_options
from sdjax.steps import mix, rl, sd, update
from sdjax.steps.sampling import Sampling
from sdjax.steps.student import Shared

CALLED = {
  **{
    function: {'options': module.Options(), 'shared': Shared()}
    for module in (sd, rl, mix)
    for function in (module.signal_step, module.loss)
  },
  update.gradient: {'options': update.Options()},
  update.update_step: {'options': update.Options()},
  demonstrations.demonstrate: vars(Demonstrations()),
  rewards.gather: vars(rl.Options()),
}


@pytest.mark.parametrize(
  'function', CALLED, ids=lambda f: f'{f.__module__}.{f.__name__}'
)
def test_defaults_are_those_of_a_config(function):
  found = 0
  for name, parameter in inspect.signature(function).parameters.items():
    if parameter.default is parameter.empty or name not in CALLED[function]:
      continue
    found += 1
    assert parameter.default == CALLED[function][name], name
    assert type(parameter.default) is type(CALLED[function][name]), name
  assert found


def test_a_config_without_changes_has_the_defaults_of_the_steps():
  config = c.Config()
  assert shared_options(config) == Shared()
  assert config.rollout and config.rollout.sampling == Sampling()
  for name, module in (('sd', sd), ('rl', rl), ('mix', mix)):
    assert c.METHODS[name] is module.Options
  ours = dict(vars(update.Options()))
  assert config.loss and config.loss.aggregation == ours.pop('aggregation')
  train = {k: ours.pop(k) for k in ('epochs', 'mini_batches', 'micro_batches')}
  assert train == {k: getattr(config.train, k) for k in train}
  # What no config says is off: no average, and the longest is T.
  assert ours == {'horizon': None, 'ema_rate': 0.0, 'ema_every': 1}
