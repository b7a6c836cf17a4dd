"""Alarms: hand-made histories for every kind, and for none."""

import dataclasses
import json

import pytest

from sdjax.config import presets
from sdjax.config import schema as c
from sdjax.config.convert import replace
from sdjax.feedback.strategies import Reference
from sdjax.objectives.divergence import ReverseKL
from sdjax.objectives.diversity_reward import Bonus
from sdjax.objectives.mixing import Advantages
from sdjax.objectives.reference_kl import K3
from sdjax.steps.teacher import EMA, Current, Frozen, Snapshot
from sdjax.training.advice import ADVICE, advise
from sdjax.training.alarm import judge
from sdjax.training.watch import Watch


def options(questions=16, **changes):
  return c.Config(
    alarm=c.Alarm(**{'window': 2, **changes}),
    rollout=c.Rollout(num_questions=questions),
  )


OPTIONS = options()


def evaluated(step, name='harder', **measures):
  names = {'success': 'pass@1', 'effective': 'effective_solutions'}
  return {'step': step} | {
    f'eval/{name}/{names.get(k, k)}': v for k, v in measures.items()
  }


def trained(
  step,
  wrong=0.25,
  right=0.25,
  idle=0.5,
  entropy=1.0,
  length=10.0,
  finished=0.9,
  reward=0.5,
):
  return {
    'step': step,
    'train/all_wrong_groups': wrong,
    'train/all_right_groups': right,
    'train/idle_groups': idle,
    'train/token_entropy': entropy,
    'train/length': length,
    'train/finished': finished,
    'train/reward': reward,
    'time/step': None,
  }


def only(alerts):
  assert len(alerts) == 1, alerts
  return alerts[0]


HEALTHY = [
  evaluated(0, success=0.3, effective=2.0, concepts_correct=1.5),
  *[trained(step) for step in range(1, 9)],
  evaluated(8, success=0.6, effective=1.9, concepts_correct=1.4),
]


def test_nothing_is_said_of_a_healthy_run():
  for end in range(len(HEALTHY) + 1):
    assert judge(HEALTHY[:end], OPTIONS) == []


def test_variety_lost_while_success_rises():
  history = [
    evaluated(0, success=0.3, effective=2.0, concepts_correct=1.5),
    evaluated(10, success=0.5, effective=4.0, concepts_correct=2.0),
    evaluated(20, success=0.9, effective=1.0, concepts_correct=1.5),
  ]
  assert judge(history[:2], OPTIONS) == []
  alert = only(judge(history, OPTIONS))
  assert (alert.step, alert.kind, alert.where) == (20, 'variety', 'harder')
  assert alert.numbers == {
    'effective_solutions/best': 4.0,
    'effective_solutions/now': 1.0,
    'pass@1/then': 0.5,
    'pass@1/now': 0.9,
    'best_step': 10,
    'fallen': 0.75,  # concepts by a quarter only
  }
  assert alert.text == (
    'harder: effective_solutions fell by 75%, from 4 (step 10) to 1, while '
    'pass@1 went from 0.5 to 0.9: the model is right in fewer ways. '
    "Try method.demonstrations.strategy='balanced' with "
    "method.demonstrations.count=3 and method.pooling='sequence_mixture' and "
    "method.divergence='forward_kl', rewards beside it (method 'mix'), a "
    "slower teacher: method.teacher='ema(rate=0.01)' (now 0.05), or stop here."
  )


@pytest.mark.parametrize('now', [1.5, 1.49])
def test_variety_may_fall_by_its_share_and_no_more(now):
  history = [
    evaluated(0, success=0.3, concepts_correct=2.0),
    evaluated(5, success=0.4, concepts_correct=now),
  ]
  found = judge(history, options(variety_drop=0.25))
  assert [alert.kind for alert in found] == ['variety'] * (now < 1.5)


def test_variety_that_peaked_after_success_is_missed_as_well():
  history = [
    evaluated(0, success=0.38, effective=1.8),
    evaluated(25, success=0.96, effective=1.9),
    evaluated(50, success=0.955, effective=1.0),
  ]
  # Since step 25 success has fallen too, by a hair; since step 0 it has not.
  alert = only(judge(history, OPTIONS))
  assert alert.kind == 'variety' and alert.numbers['best_step'] == 0
  history[1]['eval/harder/pass@1'] = 0.955
  assert only(judge(history, OPTIONS)).numbers['best_step'] == 25


def test_variety_lost_with_success_is_no_collapse_of_variety():
  history = [
    evaluated(0, success=0.50, effective=2.0),
    evaluated(5, success=0.45, effective=1.0),
  ]
  assert judge(history, OPTIONS) == []


def test_a_task_without_concepts_has_none_to_lose():
  history = [
    evaluated(0, success=0.3, concepts_correct=0.0),
    evaluated(5, success=0.6, concepts_correct=0.0),
  ]
  assert judge(history, OPTIONS) == []


def test_success_lost_after_its_best():
  history = [
    evaluated(0, success=0.3),
    evaluated(25, success=0.9),
    evaluated(50, success=0.81),
    evaluated(75, success=0.7),
  ]
  assert judge(history[:3], OPTIONS) == []
  alert = only(judge(history, OPTIONS))
  assert alert.kind == 'success' and alert.step == 75
  assert alert.numbers == {'best': 0.9, 'best_step': 25, 'now': 0.7}
  assert 'pass@1 fell from 0.9 (step 25) to 0.7' in alert.text


def test_sets_are_judged_apart_and_only_when_evaluated():
  history = [
    evaluated(0, success=0.9),
    evaluated(0, 'larger', success=0.2),
    evaluated(5, 'larger', success=0.5),
  ]
  assert judge(history, OPTIONS) == []
  both = evaluated(9, success=0.2) | evaluated(9, 'larger', success=0.1)
  found = judge([*history, both], OPTIONS)
  assert [(a.kind, a.where) for a in found] == [
    ('success', 'harder'),
    ('success', 'larger'),
  ]


def test_entropy_is_that_of_the_last_steps_over_the_first():
  entropies = [1.2, 0.8, 0.5, 0.15, 0.2]
  history = [trained(i, entropy=e) for i, e in enumerate(entropies, 1)]
  assert judge(history[:4], OPTIONS) == []  # 0.325 of 1
  alert = only(judge(history, OPTIONS))
  assert alert.kind == 'entropy' and alert.where == 'train'
  assert alert.numbers == pytest.approx({'first': 1.0, 'now': 0.175})
  assert 'Entropy is no measure of variety' in alert.cause
  assert 'concepts_correct' in alert.advice


def test_first_and_last_steps_may_not_overlap():
  history = [trained(i, entropy=e) for i, e in enumerate([1.0, 0.1, 0.1], 1)]
  assert judge(history, options(entropy_share=0.9)) == []


@pytest.mark.parametrize(
  ('length', 'kind'), [(31.0, 'longer'), (3.0, 'shorter')]
)
def test_length_by_a_factor(length, kind):
  first = [trained(1), trained(2), trained(3)]
  history = [*first, trained(4, length=length), trained(5, length=length)]
  alert = only(judge(history, OPTIONS))
  assert alert.kind == kind
  assert alert.numbers['factor'] == pytest.approx(
    3.1 if kind == 'longer' else 10 / 3
  )
  assert judge(history, options(length_factor=4.0)) == []


def test_rollouts_that_are_nearly_all_cut_off():
  history = [trained(i, finished=x) for i, x in enumerate((0.1, 0.05, 0.0), 1)]
  assert judge(history[:1], OPTIONS) == []  # too few steps
  alert = only(judge(history[:2], OPTIONS))
  assert (alert.kind, alert.where, alert.step) == ('truncated', 'train', 2)
  assert alert.numbers == pytest.approx({'first': 0.075, 'now': 0.075})
  assert alert.cause == (
    '8% of the rollouts end by themselves: the others are cut off at '
    'rollout.max_new_tokens.'
  )
  assert judge(history[:2], options(finished_share=0.05)) == []
  at_most = [trained(i, finished=0.1) for i in (1, 2)]
  assert judge(at_most, OPTIONS) == []


def test_rollouts_that_are_cut_off_more_and_more():
  shares = [0.875, 1.0, 0.75, 0.625, 0.625]
  history = [trained(i, finished=x) for i, x in enumerate(shares, 1)]
  limit = options(finished_drop=0.25)
  assert judge(history[:4], limit) == []  # .9375 to .6875, just so
  alert = only(judge(history, limit))
  assert alert.kind == 'truncated'
  assert alert.numbers == pytest.approx({'first': 0.9375, 'now': 0.625})
  assert alert.cause.startswith('62% of the rollouts end by themselves, 94% at')
  assert judge(history, options(finished_drop=0.32)) == []


def test_a_reward_that_falls():
  rewards = [0.4, 0.6, 1.0, 0.8, 0.7, 0.5, 0.5]
  history = [trained(i, reward=x) for i, x in enumerate(rewards, 1)]
  # Means of two: .5, .8, .9, .75, .6, .5; the limit is .9 - .3 times 1.
  assert judge(history[:6], OPTIONS) == []
  alert = only(judge(history, OPTIONS))
  assert (alert.kind, alert.where, alert.step) == ('reward', 'train', 7)
  want = {'best': 0.9, 'best_step': 4, 'now': 0.5}
  assert alert.numbers == pytest.approx(want)
  assert 'fell from 0.9 (to step 4) to 0.5' in alert.cause
  assert judge(history, options(reward_drop=0.41)) == []


def test_a_reward_of_another_scale_is_judged_by_it():
  # Around 0 a loss of all there was is little, beside what rewards can be.
  signed = [-0.9, -0.1, 0.1, 0.1, -0.1, -0.1]
  history = [trained(i, reward=x) for i, x in enumerate(signed, 1)]
  assert judge(history, OPTIONS) == []  # .1 to -.1, of .9
  history[0]['train/reward'] = -0.5
  assert only(judge(history, OPTIONS)).kind == 'reward'  # of .5
  negative = [-1.0, -1.0, -6.0, -6.0]
  history = [trained(i, reward=x) for i, x in enumerate(negative, 1)]
  assert only(judge(history, OPTIONS)).kind == 'reward'
  assert judge([trained(i, reward=0.0) for i in range(9)], OPTIONS) == []


def test_groups_without_a_success():
  history = [trained(1), *[trained(i, 1.0, 0.0, 1.0) for i in (2, 3)]]
  assert judge(history[:2], options(8)) == []
  alert = only(judge(history, options(8)))
  assert alert.kind == 'all_wrong'
  assert alert.numbers == {'groups': 16, 'of': 16, 'steps': 2, 'idle': 1.0}
  assert alert.text.startswith(
    '16 of 16 groups had no correct rollout in the last 2 steps: there is '
    'almost nothing to learn from.'
  )


def test_groups_without_a_failure():
  history = [trained(i, 0.0, 15 / 16, 15 / 16) for i in (1, 2)]
  alert = only(judge(history, options(16)))
  assert alert.kind == 'all_right'
  assert '30 of 32 groups had no wrong rollout' in alert.text


def test_groups_the_method_learns_from_all_the_same():
  # E.g. shown the task's own answers.
  history = [trained(i, 1.0, 0.0, 0.0) for i in (1, 2)]
  assert judge(history, OPTIONS) == []
  unknown = [
    {k: v for k, v in record.items() if k != 'train/idle_groups'}
    for record in history
  ]
  assert only(judge(unknown, OPTIONS)).kind == 'all_wrong'


def test_too_few_steps_say_nothing():
  assert judge([trained(1, 1.0, 0.0, 1.0)], OPTIONS) == []


def test_metrics_that_a_run_lacks_raise_nothing():
  history = [{'step': i, 'train/loss': 1.0} for i in range(9)]
  assert judge(history, OPTIONS) == []
  assert judge([{'step': 0}], OPTIONS) == []


def test_a_watch_tells_each_kind_once_a_set():
  told = []
  watch = Watch(options(4), told.append)
  for step in range(5):
    watch.add(trained(2 * step, 1.0, 0.0, 1.0))
    watch.add(evaluated(2 * step, success=0.9 - 0.2 * step))
  kinds = [(alert.step, alert.kind) for alert in told]
  assert kinds == [(2, 'all_wrong'), (2, 'success')]
  assert watch.alerts == told and not watch.stops


def test_a_watch_stops_or_is_off_as_told():
  for action, stops in (('stop', True), ('off', False), ('warn', False)):
    # One that is off has no window.
    config = c.Config(rollout=c.Rollout(num_questions=4))
    config = replace(config, alarm__action=action)
    watch = Watch(config, lambda alert: None)
    for step in range(config.alarm.window):
      assert not watch.stops and not watch.alerts
      watch.add(trained(step, 1.0, 0.0, 1.0))
    assert watch.stops == stops
    assert bool(watch.alerts) == (action != 'off')


def test_every_kind_is_raised_and_its_record_is_json():
  history = [trained(i, 1.0, 0.0, 1.0) for i in (1, 2)]
  record = only(judge(history, OPTIONS)).record()
  assert set(record) == {'step', 'kind', 'where', 'numbers', 'cause', 'text'}
  assert json.loads(json.dumps(record)) == record
  assert record['text'].startswith(record['cause'])
  assert ADVICE.keys() == {
    'variety',
    'success',
    'entropy',
    'longer',
    'shorter',
    'truncated',
    'all_wrong',
    'all_right',
    'reward',
  }


# ------------------------------------------------------------------- advice


SD, RL = c.Config(), c.Config(method=c.PolicyGradient())
BALANCED_RL = presets.apply(c.Config(), 'balanced_rl')


def test_what_is_on_is_not_advised():
  told = advise('variety', BALANCED_RL)
  for option in ('balanced', 'sequence_mixture', 'forward_kl', "'mix'"):
    assert option not in told
  assert told.startswith("method.rl.diversity='add', ")
  half = replace(
    BALANCED_RL,
    method__sd__divergence=ReverseKL(),
    method__rl__diversity=Bonus(0.25),
  )
  told = advise('variety', half)
  assert "method.sd.divergence='forward_kl'," in told
  assert 'a higher weight of method.rl.diversity (now 0.25)' in told


@pytest.mark.parametrize('kind', ['variety', 'success', 'reward'])
def test_a_teacher_that_moves_is_named_with_its_rate(kind):
  moving = replace(BALANCED_RL, method__sd__teacher=EMA(0.05))
  told = advise(kind, moving)
  assert "method.sd.teacher='ema(rate=0.01)' (now 0.05)" in told
  assert "method.teacher='ema(rate=0.01)' (now 0.05)" in advise(kind, SD)
  assert "method.teacher='ema(rate=0.002)' (now 0.01)" in advise(
    kind, replace(SD, method__teacher=EMA(0.01))
  )
  renewed = replace(SD, method__teacher=Snapshot(10))
  told = advise(kind, renewed)
  assert "method.teacher='snapshot(every=50)' (now 10)" in told
  current = replace(SD, method__teacher=Current())
  assert "method.teacher='ema' (now current)" in advise(kind, current)
  for still in (replace(SD, method__teacher=Frozen()), RL):
    assert 'teacher' not in advise(kind, still)


def test_advice_is_of_options_that_the_run_has():
  assert 'demonstrations' not in ''.join(advise(kind, RL) for kind in ADVICE)
  assert 'diversity' not in ''.join(advise(kind, SD) for kind in ADVICE)
  assert 'overlong_share' not in advise('longer', SD)
  assert 'method.overlong_share=0.2' in advise('longer', RL)
  penalised = replace(RL, method__overlong_share=0.5)
  assert 'overlong_share' not in advise('longer', penalised)
  on_advantage = replace(
    BALANCED_RL,
    method__rule=Advantages(),
    method__sd__divergence=ReverseKL(),
  )
  assert 'divergence' not in advise('variety', on_advantage)


@pytest.mark.parametrize(
  ('kind', 'changes', 'before', 'after'),
  [
    (
      'success',
      {'loss__kl': K3(0.1)},
      'as an anchor',
      'higher coef than loss.kl',
    ),
    ('all_wrong', {'rollout__resample': 2}, 'or rollout.resample', None),
    ('all_right', {'rollout__resample': 2}, 'rollout.resample', None),
    (
      'reward',
      {'train__keep_best': 'harder/pass@1'},
      'train.keep_best',
      'best step by harder/pass@1',
    ),
    (
      'longer',
      {'loss__aggregation': 'sequence_sum_norm'},
      'sequence_sum_norm',
      None,
    ),
    ('truncated', {'loss__mask_truncated': True}, 'mask_truncated', None),
    (
      'all_wrong',
      {'method__demonstrations__strategy': Reference()},
      'strategy=',
      None,
    ),
    (
      'entropy',
      {'optimizer__learning_rate': 0.5},
      '(now 0.0003)',
      'optimizer.learning_rate (now 0.5)',
    ),
  ],
)
def test_advice_by_option(kind, changes, before, after):
  changed = advise(kind, replace(SD, **changes))
  assert before in advise(kind, SD) and before not in changed
  assert after is None or after in changed


def test_a_method_of_ones_own_gets_what_holds_for_all():
  @dataclasses.dataclass(frozen=True)
  class Own:
    name: str = 'own'

  config = dataclasses.replace(SD, method=Own())
  assert advise('variety', config) == 'stop here'
  assert all(advise(kind, config) for kind in ADVICE)
