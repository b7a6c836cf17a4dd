"""When a run goes wrong, and why: alarms over the history of its metrics.

An alarm is a function of what `metrics.jsonl` and the evaluation before
training hold, so a resumed run raises what an unbroken one does, and the
history of any run can be judged afterwards.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdjax.config.schema import Alarm, Config
from sdjax.evaluate.measures import MEASURES
from sdjax.training.advice import advise

Record = Mapping[str, Any]
"""A line of `metrics.jsonl`: `step`, and `train/NAME` or `eval/SET/NAME`."""

VARIETY = tuple(one.name for one in MEASURES.values() if one.alarm)
"""Measures of an evaluation set of which none may fall."""

SUCCESS = 'pass@1'
ENTROPY = 'train/token_entropy'
LENGTH = 'train/length'
IDLE = 'train/idle_groups'
FINISHED = 'train/finished'
REWARD = 'train/reward'
GROUPS = {
  'all_wrong': 'train/all_wrong_groups',
  'all_right': 'train/all_right_groups',
}
"""The kinds of alarm on groups, and the share of groups each reads."""


@dataclasses.dataclass(frozen=True)
class Alert:
  """One alarm: the step that raised it, its kind, and where.

  That is the evaluation set, or `train` for an alarm on training steps. The
  numbers are what it is based on, the cause is a plain sentence.
  """

  step: int
  kind: str
  where: str
  numbers: dict[str, float]
  cause: str
  advice: str

  @property
  def text(self) -> str:
    """The cause, and what to try."""
    return f'{self.cause} Try {self.advice}.'

  def record(self) -> dict[str, Any]:
    """Returns the line of `alarms.jsonl`."""
    line = {**vars(self), 'text': self.text}
    del line['advice']
    return line


Found = Iterator[tuple[str, str, dict[str, float], str]]
"""Kind, where, numbers and cause of alarms at the last record."""


def judge(history: Sequence[Record], config: Config) -> list[Alert]:
  """Says what is wrong at the last record of a history.

    variety   a measure of `VARIETY` is more than `variety_drop` below what it
              was at some record whose pass@1 was not higher
    success   pass@1 is more than `success_drop` below its best
    entropy   the mean token entropy of the last `window` steps is below
              `entropy_share` of that of the first `window`
    longer, shorter  the mean length likewise, by more than `length_factor`
    truncated of the rollouts of the last `window` steps less than
              `finished_share` ended by themselves, or more than
              `finished_drop` less than of those of the first
    reward    the mean reward of the last `window` steps is below the highest
              of any `window` steps by more than `reward_drop` times the
              largest reward, in absolute value, that a step had
    all_wrong, all_right  more than `idle_share` of the groups of the last
              `window` steps; not when the method learns from them all the
              same (more than that share is not idle)

  A metric that the history does not have raises nothing. The records are by
  step, rising, the evaluation before training first if it is to count;
  `alarm.action` is not read. At most one alarm of a kind and set is returned.
  """
  if not history:
    return []
  options = config.alarm
  found = [*_evaluations(history, options)]
  if any(name.startswith('train/') for name in history[-1]):
    assert config.rollout
    found += _groups(history, options, config.rollout.num_questions)
    found += _trends(history, options)
    found += _truncation(history, options)
    found += _fallen_reward(history, options)
  step = history[-1]['step']
  return [
    Alert(step, kind, where, numbers, cause, advise(kind, config))
    for kind, where, numbers, cause in found
  ]


def is_read(name: str) -> bool:
  """Returns whether `judge` reads a metric."""
  read = 'step', ENTROPY, LENGTH, IDLE, FINISHED, REWARD, *GROUPS.values()
  return name in read or (
    name.startswith('eval/') and name.endswith((SUCCESS, *VARIETY))
  )


def _evaluations(history: Sequence[Record], options: Alarm) -> Found:
  """Yields the alarms of the sets that the last record evaluates."""
  last = history[-1]
  for key in last:
    stage, _, rest = key.partition('/')
    name, _, measure = rest.rpartition('/')
    if stage != 'eval' or measure != SUCCESS or not name:
      continue
    past = [record for record in history if key in record]
    best = max(past, key=lambda record, key=key: record[key])
    if best[key] - last[key] > options.success_drop:
      yield (
        'success',
        name,
        {'best': best[key], 'best_step': best['step'], 'now': last[key]},
        f'{name}: {SUCCESS} fell from {best[key]:.3g} (step {best["step"]}) '
        f'to {last[key]:.3g}: the model is losing what it had learnt.',
      )
    yield from _fallen_variety(past, name, options)


def _fallen_variety(past: Sequence[Record], name: str, options: Alarm) -> Found:
  """Yields an alarm on the measure that fell by the largest share."""
  success = f'eval/{name}/{SUCCESS}'
  now = past[-1]
  worst: tuple[float, str, Record] | None = None
  for measure in VARIETY:
    key = f'eval/{name}/{measure}'
    if key not in now:
      continue
    # Only what was lost without a loss of success, which `now` itself is.
    best = max(
      (r for r in past if key in r and r[success] <= now[success]),
      key=lambda record: record[key],
    )
    # The task may have no concepts: then there is nothing to lose.
    fallen = 1 - now[key] / best[key] if best[key] > 0 else 0.0
    if fallen > max(options.variety_drop, worst[0] if worst else 0):
      worst = fallen, measure, best
  if worst is None:
    return
  fallen, measure, best = worst
  key = f'eval/{name}/{measure}'
  yield (
    'variety',
    name,
    {
      f'{measure}/best': best[key],
      f'{measure}/now': now[key],
      f'{SUCCESS}/then': best[success],
      f'{SUCCESS}/now': now[success],
      'best_step': best['step'],
      'fallen': fallen,
    },
    f'{name}: {measure} fell by {fallen:.0%}, from {best[key]:.3g} (step '
    f'{best["step"]}) to {now[key]:.3g}, while {SUCCESS} went from '
    f'{best[success]:.3g} to {now[success]:.3g}: the model is right in '
    'fewer ways.',
  )


def _groups(history: Sequence[Record], options: Alarm, groups: int) -> Found:
  """Yields the alarms on groups from which nothing is learnt."""
  lacking = {'all_wrong': 'correct', 'all_right': 'wrong'}
  for kind, key in GROUPS.items():
    recent = _last(history, key, options.window)
    if len(recent) < options.window:
      continue
    share = _mean(recent, key)
    # Without the metric, groups that are all alike are taken to be idle.
    idle = _mean(recent, IDLE, absent=1.0)
    if min(share, idle) > options.idle_share:
      steps, total = len(recent), groups * len(recent)
      alike = round(share * total)
      yield (
        kind,
        'train',
        {'groups': alike, 'of': total, 'steps': steps, 'idle': idle},
        f'{alike} of {total} groups had no {lacking[kind]} rollout in the '
        f'last {steps} steps: there is almost nothing to learn from.',
      )


def _trends(history: Sequence[Record], options: Alarm) -> Found:
  """Yields the alarms on what has moved since the first steps."""
  if means := _ends(history, ENTROPY, options.window):
    first, now = means
    if now < options.entropy_share * first:
      yield (
        'entropy',
        'train',
        {'first': first, 'now': now},
        f'the token entropy of the rollouts fell from {first:.3g} to '
        f'{now:.3g} nats: each token is surer than it was. Entropy is no '
        'measure of variety: it can fall while the model stays right in as '
        'many ways, and rise while it does not.',
      )
  if means := _ends(history, LENGTH, options.window):
    first, now = means
    for kind, factor in (
      ('longer', now / max(first, 1e-9)),
      ('shorter', first / max(now, 1e-9)),
    ):
      if factor > options.length_factor:
        yield (
          kind,
          'train',
          {'first': first, 'now': now, 'factor': factor},
          f'rollouts are {factor:.1f} times {kind}: {now:.4g} tokens, '
          f'{first:.4g} at the start.',
        )


def _truncation(history: Sequence[Record], options: Alarm) -> Found:
  """Yields an alarm on rollouts that are cut off."""
  recent = _last(history, FINISHED, options.window)
  if len(recent) < options.window:
    return
  now = _mean(recent, FINISHED)
  first, _ = _ends(history, FINISHED, options.window) or (now, now)
  if now < options.finished_share or first - now > options.finished_drop:
    # Nothing to compare with before there are twice as many steps.
    before = f', {first:.0%} at the start' if first != now else ''
    yield (
      'truncated',
      'train',
      {'first': first, 'now': now},
      f'{now:.0%} of the rollouts end by themselves{before}: the others are '
      'cut off at rollout.max_new_tokens.',
    )


def _fallen_reward(history: Sequence[Record], options: Alarm) -> Found:
  """Yields an alarm on a reward that was higher over a window before."""
  past = [record for record in history if REWARD in record]
  if len(past) <= options.window:
    return
  sums = [0.0, *itertools.accumulate(record[REWARD] for record in past)]
  means = [
    (end - start) / options.window
    for start, end in zip(sums, sums[options.window :], strict=False)
  ]
  now, best = means[-1], max(means)
  scale = max(abs(record[REWARD]) for record in past)
  if best - now > options.reward_drop * scale:
    last = past[means.index(best) + options.window - 1]
    yield (
      'reward',
      'train',
      {'best': best, 'best_step': last['step'], 'now': now},
      f'the mean reward of {options.window} steps fell from {best:.3g} '
      f'(to step {last["step"]}) to {now:.3g}: the model is losing what it '
      'had learnt.',
    )


def _ends(
  history: Sequence[Record], key: str, window: int
) -> tuple[float, float] | None:
  """Means of a metric over the first and the last steps, if they are apart."""
  first = list(itertools.islice((r for r in history if key in r), window))
  last = _last(history, key, window)
  if not last or last[0]['step'] <= first[-1]['step']:
    return None
  return _mean(first, key), _mean(last, key)


def _last(history: Sequence[Record], key: str, window: int) -> list[Record]:
  """The last records that have a metric, by step."""
  recent = itertools.islice((r for r in reversed(history) if key in r), window)
  return list(recent)[::-1]


def _mean(records: Sequence[Record], key: str, absent: float = 0) -> float:
  return sum(r.get(key, absent) for r in records) / len(records)
