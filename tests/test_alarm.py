"""Alarms: hand-made histories for every kind, and for none."""

import json

import pytest

from sdjax import config as c
from sdjax.alarm import ADVICE, Watch, judge

OPTIONS = c.Alarm(window=2)


def evaluated(step, name='harder', **measures):
  names = {'success': 'pass@1', 'effective': 'effective_solutions'}
  return {'step': step} | {
    f'eval/{name}/{names.get(k, k)}': v for k, v in measures.items()
  }


def trained(step, wrong=0.25, right=0.25, idle=0.5, entropy=1.0, length=10.0):
  return {
    'step': step,
    'train/all_wrong_groups': wrong,
    'train/all_right_groups': right,
    'train/idle_groups': idle,
    'train/token_entropy': entropy,
    'train/length': length,
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
    "Try for self-distillation method.demonstrations.strategy='balanced' "
    "with count=3, method.pooling='sequence_mixture' and "
    "method.objective='forward_kl'; for RL method.diversity_weight; the two "
    "together with method 'mix'; or stop here."
  )


@pytest.mark.parametrize('now', [1.5, 1.49])
def test_variety_may_fall_by_its_share_and_no_more(now):
  history = [
    evaluated(0, success=0.3, concepts_correct=2.0),
    evaluated(5, success=0.4, concepts_correct=now),
  ]
  found = judge(history, c.Alarm(variety_drop=0.25))
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


def test_first_and_last_steps_may_not_overlap():
  history = [trained(i, entropy=e) for i, e in enumerate([1.0, 0.1, 0.1], 1)]
  assert judge(history, c.Alarm(window=2, entropy_share=0.9)) == []


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
  assert judge(history, c.Alarm(window=2, length_factor=4.0)) == []


def test_groups_without_a_success():
  history = [trained(1), *[trained(i, 1.0, 0.0, 1.0) for i in (2, 3)]]
  assert judge(history[:2], OPTIONS, groups=8) == []
  alert = only(judge(history, OPTIONS, groups=8))
  assert alert.kind == 'all_wrong'
  assert alert.numbers == {'groups': 16, 'of': 16, 'steps': 2, 'idle': 1.0}
  assert alert.text.startswith(
    '16 of 16 groups had no correct rollout in the last 2 steps: there is '
    'almost nothing to learn from.'
  )


def test_groups_without_a_failure():
  history = [trained(i, 0.0, 15 / 16, 15 / 16) for i in (1, 2)]
  alert = only(judge(history, OPTIONS, groups=16))
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
  watch = Watch(OPTIONS, 4, told.append)
  for step in range(5):
    watch.add(trained(2 * step, 1.0, 0.0, 1.0))
    watch.add(evaluated(2 * step, success=0.9 - 0.2 * step))
  kinds = [(alert.step, alert.kind) for alert in told]
  assert kinds == [(2, 'all_wrong'), (2, 'success')]
  assert watch.alerts == told and not watch.stops


def test_a_watch_stops_or_is_off_as_told():
  for action, stops in (('stop', True), ('off', False), ('warn', False)):
    watch = Watch(c.Alarm(action=action, window=1), 4, lambda alert: None)
    assert not watch.stops
    watch.add(trained(1, 1.0, 0.0, 1.0))
    assert watch.stops == stops
    assert bool(watch.alerts) == (action != 'off')


def test_every_kind_has_advice_and_its_record_is_json():
  history = [trained(i, 1.0, 0.0, 1.0) for i in (1, 2)]
  alert = only(judge(history, OPTIONS))
  assert set(alert.record()) == {'step', 'kind', 'where', 'numbers', 'text'}
  assert json.loads(json.dumps(alert.record())) == alert.record()
  assert ADVICE.keys() == {
    'variety',
    'success',
    'entropy',
    'longer',
    'shorter',
    'all_wrong',
    'all_right',
  }
