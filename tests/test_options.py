"""Every option of every method, switched on in a small problem.

The model is a table that compiles in a moment: `models.bags`.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import assert_close, bags
from option_variants import (
  BASES,
  LETTERS,
  MIX,
  NUM_G,
  NUM_Q,
  SD,
  VARIANTS,
  WIDTH,
)

from sdjax import methods
from sdjax.config import presets
from sdjax.config import schema as c
from sdjax.config.check import sections, validate
from sdjax.config.convert import replace
from sdjax.feedback.grading import Graded, grade
from sdjax.feedback.strategies import (
  Demonstrations,
)
from sdjax.models.tokenizer import word_tokenizer
from sdjax.objectives.diversity_reward import (
  Bonus,
  NoDiversityReward,
  Scale,
)
from sdjax.objectives.mixing import (
  RLCSD,
  RLSD,
  SDPG,
  SRPO,
)
from sdjax.objectives.policy_loss import (
  Reinforce,
)
from sdjax.objectives.schedule import Constant
from sdjax.options import Option
from sdjax.steps import mix, rl, sd, update
from sdjax.steps.score import completion_hidden, token_logp
from sdjax.steps.student import Loss
from sdjax.tasks.base import Question, Task, Verdict
from sdjax.types import Prompts, Rollout, TrainState

TOKENIZER = word_tokenizer(['a', 'b', 'c', 'd', '=', 'no', '?'])
SIZE = len(TOKENIZER)


apply_fn, _ = bags(SIZE)


def table(seed=0):
  return bags(SIZE, seed)[1]


class Letters(Task):
  """An answer is right if it begins with `a` or `b`; its concepts: letters."""

  name = 'letters'
  splits: tuple[str, ...] = ('train',)
  student_template = '{question}'
  teacher_template = '{demonstration} = {question}'
  feedback_template = 'no {feedback} = {question}'
  both_template = 'no {feedback} = {demonstration} = {question}'

  def questions(self, split):
    del split
    return [Question(i, 'train', 'd ?', None) for i in range(NUM_Q)]

  def example(self, question):
    del question
    return 'b c'

  def verify(self, question, answer):
    del question
    words = answer.split()
    right = words[:1] in (['a'], ['b'])
    return Verdict(
      correct=right,
      reward=float(right),
      solution=words[0] if right else '',
      strategy=tuple(sorted(set(words))),
      feedback='' if right else 'd',
    )


# Question 0: two right, of three kinds in all. 1: one right. 2: all right,
# two with the same text. 3: none. Some end by themselves, some are cut off.
ANSWERS = [
  ['a b .', 'b c c c', 'c a .', 'd d d .'],
  ['a .', 'c b .', 'd a a .', 'c c .'],
  ['b c .', 'b .', 'a d d d', 'b c .'],
  ['c .', 'd c .', 'c d a .', 'd .'],
]


@functools.cache
def rollouts(pad=0):
  """The prompts and rollouts, `pad` columns wider than they need be."""
  ids = np.full((NUM_Q, NUM_G, WIDTH + pad), 3, np.int32)
  length = np.zeros((NUM_Q, NUM_G), np.int32)
  for q, row in enumerate(ANSWERS):
    for g, answer in enumerate(row):
      tokens = TOKENIZER.encode(answer.replace('.', TOKENIZER.eos_token))
      ids[q, g, : len(tokens)] = tokens
      length[q, g] = len(tokens)
  question = np.array(TOKENIZER.encode('d ?'), np.int32)
  prompts = Prompts(
    ids=jnp.asarray(np.tile(np.pad(question, (pad, 0)), (NUM_Q, 1))),
    length=jnp.full(NUM_Q, 2, jnp.int32),
    question_id=jnp.arange(NUM_Q),
  )
  hidden = completion_hidden(
    apply_fn,
    table(),
    jnp.asarray(prompts.ids)[:, None],
    jnp.asarray(prompts.length)[:, None],
    jnp.asarray(ids),
  )
  logp = token_logp(apply_fn, table(), hidden, jnp.asarray(ids))
  # Sampled a little while ago: ratios are not all 1.
  rng = np.random.default_rng(5)
  noise = np.zeros(ids.shape)
  noise[..., :WIDTH] = 0.2 * rng.standard_normal((NUM_Q, NUM_G, WIDTH))
  noise[0, 2, 0] = -1.5  # a wrong rollout's token is 4.5 times likelier now
  rollout = Rollout(
    ids=jnp.asarray(ids),
    length=jnp.asarray(length),
    behavior_logp=logp + jnp.asarray(noise, jnp.float32),
    entropy=jnp.zeros(ids.shape),
    finished=jnp.asarray([[a.endswith('.') for a in row] for row in ANSWERS]),
  )
  return prompts, rollout


STEP = 2
"""Of training, where no schedule below stands still."""


PROGRAMS: dict[str, Any] = {}


def program(method, train, aggregation):
  """The compiled step; methods that differ on the host alone share one."""
  teacher_of = method.teacher
  options = update.Options(
    aggregation=aggregation,
    horizon=WIDTH,
    epochs=train.epochs,
    mini_batches=train.mini_batches,
    micro_batches=train.micro_batches,
    ema_rate=teacher_of.rate if teacher_of else 0.0,
    ema_every=teacher_of.every if teacher_of else 1,
  )
  key = repr(
    (
      on_the_device(method.signal),
      on_the_device(method.loss),
      method.refresh and on_the_device(method.refresh),
      teacher_of,
      method.reference,
      options,
    )
  )
  if key in PROGRAMS:
    return PROGRAMS[key]
  teacher, reference = table(1), table(2)
  optimizer = optax.adam(0.01)
  weights = teacher_of.weights if teacher_of else None
  averages = weights == 'average'

  def whole(params, prompts, rollout, evidence):
    others = {'current': params, 'initial': reference}
    teacher_params = others.get(weights or '', teacher)
    signal = method.signal(
      params,
      teacher_params,
      reference if method.reference else None,
      prompts,
      rollout,
      evidence,
    )
    state = TrainState(
      step=jnp.int32(0),
      params=params,
      opt_state=optimizer.init(params),
      teacher_params=teacher if averages else None,
    )
    return update.update_step(
      state,
      None if averages else teacher_params,
      reference if method.reference else None,
      prompts,
      rollout,
      signal,
      loss_fn=method.loss,
      refresh_fn=method.refresh,
      optimizer=optimizer,
      options=options,
    )

  return PROGRAMS.setdefault(key, jax.jit(whole))


def on_the_device(function: Any) -> Any:
  """A bound step, less the options that act on the host alone."""
  options = function.keywords['options']
  changes: dict[str, Any] = {}
  parts = [('', options)]
  if isinstance(options, mix.Options):
    parts = [('sd__', options.sd), ('rl__', options.rl)]
    changes['schedule'] = Constant()
  for path, part in parts:
    if isinstance(part, sd.Options):
      shown = part.demonstrations
      changes[f'{path}demonstrations'] = Demonstrations(
        count=shown.count, contrast=shown.contrast
      )
    else:
      changes[f'{path}diversity'] = NoDiversityReward()
      changes[f'{path}overlong_share'] = 0.0
  return function.func, function.keywords | {
    'options': replace(options, **changes)
  }


def made(config: c.Config) -> methods.Method:
  kind = methods.METHODS[config.method.name]
  return kind(config, apply_fn, Letters(), TOKENIZER)


def graded() -> Graded:
  host = jax.device_get(rollouts()[1])
  return grade(Letters(), TOKENIZER, Letters().questions('train'), host)


def step(config, prompts, rollout, micro_batches=1, width=0):
  """One step of a method: parameters, EMA teacher and loss after it."""
  method = made(config)
  evidence = method.gather(graded(), STEP).evidence
  contexts = methods.teacher_contexts(evidence)
  if width and contexts is not None:
    ids = np.pad(contexts.context_ids, ((0, 0), (0, 0), (width, 0)))
    contexts = dataclasses.replace(contexts, context_ids=ids)
    both = isinstance(evidence, mix.Evidence)
    evidence = dataclasses.replace(evidence, sd=contexts) if both else contexts
  parts = math.gcd(micro_batches, NUM_Q // config.train.mini_batches)
  train = dataclasses.replace(config.train, micro_batches=parts)
  run = program(method, train, config.loss.aggregation)
  return run(table(), prompts, rollout, jax.tree.map(jnp.asarray, evidence))


@functools.cache
def plainly(config):
  """A step in one part, without padding."""
  return step(config, *rollouts())


@pytest.mark.parametrize('name', VARIANTS)
def test_a_step(name):
  config = VARIANTS[name]
  validate(config)
  state, metrics = plainly(config)
  assert all(jnp.isfinite(x) for x in metrics.values()), metrics
  assert jnp.isfinite(state.params).all()
  assert jnp.abs(state.params - table()).max() > 1e-4, 'nothing moved'
  # In two parts, and all of it wider than it need be. Adam's first step hides
  # the scale of a gradient, so the metrics, which hold its norm, are compared
  # as well.
  other, more = step(config, *rollouts(pad=2), micro_batches=2, width=3)
  assert_close(more, metrics, 1e-4)
  assert_close(other.params, state.params, 1e-3)


# ------------------------------------------- each option makes a difference


def same(a: Any, b: Any) -> bool:
  return all(
    bool(jnp.allclose(x, y, atol=1e-6))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def differ(config: c.Config, base: c.Config) -> bool:
  """Whether loss, slope or the teacher after a step are others."""
  (state, got), (plain, metrics) = plainly(config), plainly(base)
  keys = metrics.keys() & got.keys()
  assert keys
  if not same({k: metrics[k] for k in keys}, {k: got[k] for k in keys}):
    return True
  averages = [x.teacher_params for x in (state, plain)]
  return not any(x is None for x in averages) and not same(*averages)


Point = tuple[type, str, Any]
"""A section or choice, one of its options, and which value where few are."""

NO_DIFFERENCE: set[Point] = {
  (Loss, 'chunk', None),  # memory alone
  (Scale, 'by', 'solution'),  # the same in these groups; see test_choices.py
}
NOT_VARIED = (
  'name',
  'max_context',  # of every variant
  'file',  # of `letters.jsonl`, whose content acts
)


def options_of(kind: Any) -> dict[str, tuple[Any, Any]]:
  """The options of a section or choice: type and default of each.

  Sections within a section are none, their options are their own.
  """
  types = typing.get_type_hints(kind)
  return {
    field.name: (types[field.name], field.default)
    for field in dataclasses.fields(kind)
    if field.name not in NOT_VARIED
    and (
      is_choice(types[field.name])
      or not dataclasses.is_dataclass(types[field.name])
    )
  }


def is_choice(kind: Any) -> bool:
  return isinstance(kind, type) and issubclass(kind, Option)


def point(kind: Any, name: str, value: Any) -> Point:
  """What is varied where an option has a value other than its default."""
  if isinstance(value, Option):
    return kind, name, type(value)
  few = typing.get_origin(options_of(kind)[name][0]) is Literal
  return kind, name, value if few else None


def wanted() -> Iterator[Point]:
  """All that can be varied in the options of the methods."""
  kinds: list[Any] = [sd.Options, rl.Options, mix.Options, Demonstrations, Loss]
  for kind in kinds:  # it grows
    for name, (hint, default) in options_of(kind).items():
      if is_choice(hint):
        for choice in hint.choices.values():
          if choice is not type(default):
            yield kind, name, choice
          kinds += [choice] * (choice not in kinds)
      elif typing.get_origin(hint) is Literal:
        for value in set(typing.get_args(hint)) - {default}:
          yield kind, name, value
      else:
        yield kind, name, None


def changed(config: c.Config, option: str, value: Any) -> c.Config | None:
  """A config with another value, or None where another option forbids it."""
  try:
    config = replace(config, **{option.replace('.', '__'): value})
    validate(config)
  except c.ConfigError:
    return None
  return config


def single_changes(
  config: c.Config,
) -> Iterator[tuple[str, Point, c.Config]]:
  """Each option that a config sets, and the config without it alone.

  Of a choice: the default one, and it with each of its own options undone.
  """
  # Its rollouts used as often.
  base = dataclasses.replace(BASES[config.method.name], train=config.train)
  for path, section in sections(config):
    if not path.startswith(('method.', 'loss.')):
      continue
    for name, (_, default) in options_of(type(section)).items():
      value = getattr(section, name)
      if value == default:
        continue
      what = point(type(section), name, value)
      yield path + name, what, changed(config, path + name, default) or base
      if isinstance(value, Option):
        yield from within(config, path + name, value)


def within(
  config: c.Config, option: str, value: Any
) -> Iterator[tuple[str, Point, c.Config]]:
  """A choice with each of its own options undone, or where it cannot, moved."""
  for name, (_, default) in options_of(type(value)).items():
    own = getattr(value, name)
    if own == default:
      continue
    for new in (default, own + 1 if isinstance(own, int) else 2 * own):
      try:
        moved = dataclasses.replace(value, **{name: new})
      except c.ConfigError:
        continue
      other = changed(config, option, moved)
      if other is not None:
        yield f'{option}.{name}', point(type(value), name, own), other
        break


SINGLE = {
  f'{label} / {what}': (varied, config, other)
  for label, config in VARIANTS.items()
  if not label.startswith('preset:')
  for what, varied, other in single_changes(config)
}


@pytest.mark.parametrize(
  'name',
  [n for n, (varied, *_) in SINGLE.items() if varied not in NO_DIFFERENCE],
)
def test_an_option_makes_a_difference(name):
  """Loss, slope or teacher are others without it, all else being the same."""
  _, config, other = SINGLE[name]
  assert differ(config, other)


def test_every_option_and_every_choice_is_varied():
  """One that is added needs a variant above."""
  varied = {varied for varied, *_ in SINGLE.values()}
  lacking = [what for what in wanted() if what not in varied]
  assert not lacking


@pytest.mark.parametrize('name', ['sd', 'mix'])
def test_what_a_file_covers_is_noted(name):
  config = replace(SD, method__demonstrations__strategy=LETTERS)
  if name == 'mix':
    config = replace(MIX, method__sd=config.method)
  (note,) = made(config).notes
  assert 'letters.jsonl covers 3 of 4 training questions' in note
  assert not made(SD).notes


@pytest.mark.parametrize(
  'rule, contrast, want',
  [
    # Question 1 has a single right rollout, 2 none wrong and 3 none right.
    (RLSD(), 0, [True, True, False, False]),
    (RLCSD(), 2, [True, True, False, False]),
    (SDPG(), 0, [True, True, True, False]),
    (SDPG(positive_only=True), 0, [True, True, False, False]),
    (SRPO(), 0, [True, True, False, False]),
  ],
  ids=str,
)
def test_which_questions_teach_anything(rule, contrast, want):
  config = replace(
    MIX, method__rule=rule, method__sd__demonstrations__contrast=contrast
  )
  useful = made(config).gather(graded(), 1).useful
  np.testing.assert_array_equal(useful, want)


def test_a_question_without_right_and_wrong_answers_teaches_rlcsd_nothing():
  """Diversity makes an advantage where all are right; a contrast it lacks."""
  config = replace(
    MIX,
    method__rule=RLCSD(),
    method__sd__demonstrations__contrast=2,
    method__rl__diversity=Bonus(0.5),
  )
  useful = made(config).gather(graded(), 1).useful
  np.testing.assert_array_equal(useful, [True, True, False, False])


@pytest.mark.parametrize('name', presets.PRESETS)
def test_a_preset_makes_a_difference(name):
  """From its method as it is by default: in the step, or in the recipe."""
  preset = presets.PRESETS[name]
  base = BASES[preset.kind]
  config = VARIANTS[f'preset:{name}']
  plain = dict(sections(c.Config(method=c.METHODS[preset.kind]())))
  altered = [
    option
    for path, section in sections(config)
    for option, field in (
      (path + field.name, field.name) for field in dataclasses.fields(section)
    )
    if option in preset.values
    and getattr(section, field) != getattr(plain[path], field)
  ]
  assert altered, 'it sets what is set anyway'
  if any(option.startswith(('method.', 'loss.')) for option in altered):
    assert differ(config, base)


def test_a_kl_in_the_reward_is_bound_to_both_steps():
  config = VARIANTS['rl:kl=reward(coef=0.1)']
  _, metrics = plainly(config)
  assert metrics['loss'] == metrics['policy'] and metrics['kl_ref']
  # Under a truncating sampler its log-probabilities are not the sampler's.
  config = replace(config, method__policy_loss=Reinforce())
  for top_p, anew in ((1.0, False), (0.9, True)):
    bound = made(replace(config, rollout__top_p=top_p))
    evidence = bound.gather(graded(), 1).evidence
    signal = bound.signal(table(), None, table(2), *rollouts(), evidence)
    assert (signal.old_logp is not None) == anew
