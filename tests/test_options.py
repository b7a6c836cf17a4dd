"""Every option of every method, switched on in a small problem.

The model is a table that compiles in a moment: `models.bags`.
"""

import contextlib
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import assert_close, bags
from sdjax.config.rules import ALLOWED

from sdjax import methods
from sdjax.config import presets
from sdjax.config import schema as c
from sdjax.config.check import is_changed, sections, validate
from sdjax.config.convert import replace
from sdjax.feedback.grading import grade
from sdjax.models.tokenizer import word_tokenizer
from sdjax.steps.score import completion_hidden, token_logp
from sdjax.steps.update import update_step
from sdjax.tasks.base import Question, Task, Verdict
from sdjax.types import Prompts, Rollout, TrainState

TOKENIZER = word_tokenizer(['a', 'b', 'c', 'd', '=', 'no', '?'])
SIZE = len(TOKENIZER)
NUM_Q, NUM_G, WIDTH = 4, 4, 4


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


BASE = c.Config(
  rollout=c.Rollout(
    num_questions=NUM_Q,
    num_samples=NUM_G,
    max_context=9,
    context_buckets=(9,),
    max_new_tokens=WIDTH,
  ),
  task=c.ConceptGraph(),
)
SD = replace(BASE, method__demonstrations__max_context=12)
RL = dataclasses.replace(BASE, method=c.PolicyGradient())
EXTERNAL = replace(
  SD,
  method__demonstrations__strategy='external',
  method__demonstrations__file=str(Path(__file__).parent / 'letters.jsonl'),
)
MIX = replace(
  dataclasses.replace(BASE, method=c.Mix()),
  method__sd__demonstrations__max_context=12,
)


def variants() -> dict[str, c.Config]:
  """Config name to config, each switching something on."""
  out = {'sd': SD, 'rl': RL, 'mix': MIX, 'sd:external': EXTERNAL}

  def add(base, prefix, **changes):
    label = ','.join(f'{k}={v}' for k, v in changes.items())
    config = replace(base, **{prefix + k: v for k, v in changes.items()})
    if {'clip', 'importance'} & {w for k in changes for w in k.split('_')}:
      config = replace(config, train__epochs=2)  # else all ratios are 1
    out[f'{base.method.name}:{label}'] = config

  for changes in (
    {'objective': 'forward_kl'},
    {'objective': 'jsd', 'jsd_alpha': 0.3},
    {'objective': 'jsd', 'jsd_normalised': True},
    {'objective': 'cross_entropy', 'credit_discount': 1.0},
    {'objective': 'score_weighted'},
    {'support': 'student_top_k', 'top_k': 3},
    {'support': 'student_top_k', 'top_k': 3, 'tail': False},
    {'support': 'teacher_top_k', 'top_k': 2},
    {'support': 'teacher_top_k', 'top_k': 2, 'tail': False},
    {'support': 'sampled'},
    {'support': 'sampled', 'credit_discount': 0.9},
    {'pointwise_clip': 0.05},
    {'importance_clip': 1.1},
    {'success_exponent': 0.5},
    {'teacher': 'current'},
    {'teacher': 'frozen'},
    {'teacher': 'snapshot', 'snapshot_every': 2},
    {'ema_rate': 0.2},
    {'teacher': 'trust_region', 'trust_region': 0.3},
    {'anchor_beta': 2.0, 'anchor_steps': 5},
    {'demonstrations__strategy': 'first'},
    {'demonstrations__strategy': 'balanced'},
    {'demonstrations__strategy': 'most_different', 'demonstrations__count': 2},
    {'demonstrations__strategy': 'reference'},
    {'demonstrations__count': 3},
    {'demonstrations__count': 3, 'pooling': 'mixture'},
    {'demonstrations__count': 3, 'pooling': 'sequence_mixture'},
    {'teacher_temperature': 0.5},
    {'demonstrations__exclude_self': False},
    {'demonstrations__exclude_same_text': True},
    {'demonstrations__feedback': 'without_peer'},
    {
      'demonstrations__feedback': 'always',
      'demonstrations__both_template': (
        '{feedback} {demonstration} = {question}'
      ),
    },
    {
      'demonstrations__strategy': 'none',
      'demonstrations__feedback': 'always',
      'demonstrations__feedback_template': '{feedback} = {question}',
    },
    {'demonstrations__template': '{demonstration} no {question}'},
  ):
    add(SD, 'method__', **changes)
  add(EXTERNAL, 'method__', demonstrations__file_draw='distinct')
  for changes in (
    {'advantage': 'dr_grpo'},
    {'advantage': 'rloo'},
    {'advantage': 'reinforce'},
    {'std': 'sample'},
    {'std_epsilon': 0.1},
    {'advantage': 'pass_at_k', 'pass_k': 2},
    {'advantage': 'rosa'},
    {'policy_loss': 'gspo'},
    {'policy_loss': 'cispo', 'clip_low': 1.0},
    {'policy_loss': 'cispo', 'clip_low': 1.0, 'drop_low': 0.1},
    {'policy_loss': 'cispo', 'clip_low': 1.0, 'drop_high': 0.1},
    {'policy_loss': 'reinforce'},
    {'clip_high': 0.28},
    {'dual_clip': 3.0},
    {'adaptive_clip': True},
    {'diversity_weight': 0.5},
    {'diversity_weight': 0.5, 'diversity_for': 'all'},
    {'diversity_weight': 0.5, 'diversity_by': 'solution'},
    {'diversity_weight': 1.0, 'diversity_how': 'multiply'},
    {'overlong_share': 0.5},
  ):
    add(RL, 'method__', **changes)
  for base in (SD, RL):
    for changes in (
      {'loss__aggregation': 'sequence_mean'},
      {'loss__aggregation': 'sequence_sum'},
      {'loss__aggregation': 'sequence_sum_norm'},
      {'loss__kl_coef': 0.1},
      {'loss__kl_coef': 0.1, 'loss__kl_estimator': 'k1'},
      {'loss__kl_coef': 0.1, 'loss__kl_estimator': 'k2'},
      {'loss__kl_coef': 0.1, 'loss__kl_estimator': 'full'},
      {'loss__skip_tokens': 1},
      {'loss__mask_truncated': True},
      {'loss__sampler_clip': 0.9},
      {'loss__chunk': 3},
    ):
      add(base, '', **changes)
    add(base, 'train__', epochs=2, mini_batches=2)
  for place in ('reward', 'reward_to_go'):
    add(RL, 'loss__', kl_coef=0.1, kl_in=place)
  for changes in (
    {'rule': 'advantage', 'weight': 0.3},
    {'rule': 'advantage', 'schedule__rise': 3, 'schedule__delay': 0},
    {'rule': 'advantage', 'schedule__hold': 2, 'schedule__fall': 4},
    {'rule': 'antisd', 'schedule__delay': 1, 'schedule__rise': 1},
    {'rule': 'rlsd', 'ratio_clip': 0.4},
    {'rule': 'debiased', 'weight': 0.1},
    {'rule': 'antisd', 'entropy_floor': 5.0},
    {
      'rule': 'rlcsd',
      'sd__demonstrations__contrast': 2,
      'contrast_temperature': 1.0,
      'contrast_clip': 0.3,
      'contrast_threshold': 0.2,
      'touched_weight': 0.5,
    },
    {'rule': 'loss', 'sd__objective': 'jsd', 'rl__advantage': 'rloo'},
    {'rule': 'srpo', 'entropy_exponent': 0.5},
    {'rule': 'sdpg'},
    {'rule': 'sdpg', 'positive_only': True},
  ):
    add(MIX, 'method__', **changes)
  for name in presets.PRESETS:
    out[f'preset:{name}'] = presets.apply(SD, name)
  # Of 4 rollouts the best of 4 is always the same.
  name = 'preset:pass_at_k'
  out[name] = replace(out[name], method__pass_k=2)
  return out


VARIANTS = variants()


PROGRAMS: dict[str, Any] = {}


def program(method, train, aggregation):
  """The compiled step; methods that differ on the host alone share one."""
  key = repr(
    (
      method.signal,
      method.loss,
      method.refresh,
      method.teacher,
      method.reference,
      train,
      aggregation,
    )
  )
  if key in PROGRAMS:
    return PROGRAMS[key]
  teacher, reference = table(1), table(2)
  optimizer = optax.adam(0.01)
  kind = method.teacher.kind if method.teacher else None

  def whole(params, prompts, rollout, evidence):
    others = {'current': params, 'frozen': reference}
    teacher_params = others.get(kind or '', teacher)
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
      teacher_params=teacher if kind == 'ema' else None,
    )
    return update_step(
      state,
      None if kind == 'ema' else teacher_params,
      reference if method.reference else None,
      prompts,
      rollout,
      signal,
      loss_fn=method.loss,
      refresh_fn=method.refresh,
      optimizer=optimizer,
      aggregation=aggregation,
      horizon=WIDTH,
      epochs=train.epochs,
      mini_batches=train.mini_batches,
      micro_batches=train.micro_batches,
      ema_rate=method.teacher.rate if method.teacher else 0.0,
      ema_every=method.teacher.every if method.teacher else 1,
    )

  return PROGRAMS.setdefault(key, jax.jit(whole))


def step(config, prompts, rollout, micro_batches=1, width=0):
  """One step of a method: parameters, EMA teacher and loss after it."""
  task = Letters()
  method = methods.METHODS[config.method.name](
    config, apply_fn, task, TOKENIZER
  )
  host = jax.device_get(rollout)
  graded = grade(task, TOKENIZER, task.questions('train'), host)
  evidence = method.gather(graded, 1).evidence
  if width and evidence.context_ids is not None:
    ids = np.pad(evidence.context_ids, ((0, 0), (0, 0), (width, 0)))
    evidence = dataclasses.replace(evidence, context_ids=ids)
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


def test_every_option_is_switched_on_somewhere():
  """An option that is added needs a variant above."""
  not_here = {
    'name',
    'max_context',  # of every variant
  }
  kinds = (c.SelfDistillation, c.PolicyGradient, c.Mix, c.Demonstrations)
  changed: set[tuple[type, str]] = set()
  for config in VARIANTS.values():
    for _, section in sections(config):
      for field in dataclasses.fields(section):
        if is_changed(section, field.name):
          changed.add((type(section), field.name))
  for kind in (*kinds, c.Loss, c.Schedule):
    for field in dataclasses.fields(kind):
      if field.name not in not_here and not dataclasses.is_dataclass(
        getattr(kind(), field.name)
      ):
        assert (kind, field.name) in changed, (kind, field.name)


def test_every_choice_is_made_somewhere():
  """A choice that is added needs a variant above."""
  kinds = (c.SelfDistillation, c.PolicyGradient, c.Mix, c.Demonstrations)
  made = {
    (type(section), name, getattr(section, name))
    for config in VARIANTS.values()
    for _, section in sections(config)
    for name in ALLOWED.get(type(section), ())
  }
  for kind in (*kinds, c.Loss):
    for name, values in ALLOWED[kind].items():
      for value in values:
        assert (kind, name, value) in made, (kind, name, value)


@pytest.mark.parametrize('name', ['sd', 'mix'])
def test_what_a_file_covers_is_noted(name):
  config = EXTERNAL
  if name == 'mix':
    config = replace(MIX, method__sd=EXTERNAL.method)
  made = methods.METHODS[name](config, apply_fn, Letters(), TOKENIZER)
  (note,) = made.notes
  assert 'letters.jsonl covers 3 of 4 training questions' in note
  assert not methods.METHODS['sd'](SD, apply_fn, Letters(), TOKENIZER).notes


@pytest.mark.parametrize(
  'rule, options, want',
  [
    # Question 1 has a single right rollout, 2 none wrong and 3 none right.
    ('rlsd', {}, [True, True, False, False]),
    ('rlcsd', {'sd__demonstrations__contrast': 2}, [True, True, False, False]),
    ('sdpg', {}, [True, True, True, False]),
    ('sdpg', {'positive_only': True}, [True, True, False, False]),
    ('srpo', {}, [True, True, False, False]),
  ],
)
def test_which_questions_teach_anything(rule, options, want):
  changes = {f'method__{k}': v for k, v in options.items()}
  config = replace(MIX, method__rule=rule, **changes)
  task = Letters()
  method = methods.METHODS['mix'](config, apply_fn, task, TOKENIZER)
  host = jax.device_get(rollouts()[1])
  graded = grade(task, TOKENIZER, task.questions('train'), host)
  np.testing.assert_array_equal(method.gather(graded, 1).useful, want)


def test_a_question_without_right_and_wrong_answers_teaches_rlcsd_nothing():
  """Diversity makes an advantage where all are right; a contrast it lacks."""
  config = replace(
    MIX,
    method__rule='rlcsd',
    method__sd__demonstrations__contrast=2,
    method__rl__diversity_weight=0.5,
  )
  task = Letters()
  method = methods.METHODS['mix'](config, apply_fn, task, TOKENIZER)
  host = jax.device_get(rollouts()[1])
  graded = grade(task, TOKENIZER, task.questions('train'), host)
  useful = method.gather(graded, 1).useful
  np.testing.assert_array_equal(useful, [True, True, False, False])


def same(a: Any, b: Any) -> bool:
  return all(
    bool(jnp.allclose(x, y, atol=1e-6))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


@pytest.mark.parametrize(
  'name',
  [n for n in VARIANTS if n.startswith(('sd:', 'rl:')) and 'chunk' not in n],
)
def test_an_option_makes_a_difference(name):
  """The loss or its slope is another than without it."""
  config = VARIANTS[name]
  base = {'sd': SD, 'rl': RL}[name[:2]]
  if 'file_draw' in name:
    base = EXTERNAL
  if config.train.epochs > 1 and config.method != base.method:
    base = replace(base, train__epochs=config.train.epochs)
  plain, metrics = plainly(base)
  state, got = plainly(config)
  if 'teacher=snapshot' in name or 'ema_rate' in name:
    assert not same(state.teacher_params, plain.teacher_params)
    return
  keys = metrics.keys() & got.keys()
  assert not same({k: metrics[k] for k in keys}, {k: got[k] for k in keys})


def without(config: c.Config, path: str, name: str) -> c.Config:
  """A config with one option as it is by default."""
  section = dict(sections(config))[path]
  option = (path + name).replace('.', '__')
  return replace(config, **{option: getattr(type(section)(), name)})


def single_options() -> dict[str, tuple[c.Config, c.Config]]:
  """Each option that a mix sets: with it, and without it alone.

  One that another one needs cannot be taken back alone.
  """
  out = {}
  for label, config in VARIANTS.items():
    if not label.startswith('mix:'):
      continue
    for path, section in sections(config):
      for field in dataclasses.fields(section):
        if (
          not path.startswith(('method.', 'loss.'))
          or field.name in ('name', 'max_context')
          or dataclasses.is_dataclass(getattr(section, field.name))
          or not is_changed(section, field.name)
        ):
          continue
        other = without(config, path, field.name)
        with contextlib.suppress(c.ConfigError):
          validate(other)
          out[f'{label} / {field.name}'] = (config, other)
  return out


SINGLE = single_options()


def differ(config: c.Config, base: c.Config) -> bool:
  """Whether loss, slope or the teacher after a step are others."""
  (state, got), (plain, metrics) = plainly(config), plainly(base)
  keys = metrics.keys() & got.keys()
  assert keys
  if not same({k: metrics[k] for k in keys}, {k: got[k] for k in keys}):
    return True
  teachers = [x.teacher_params for x in (state, plain)]
  return any(x is None for x in teachers) or not same(*teachers)


@pytest.mark.parametrize('name', SINGLE)
def test_an_option_of_a_mix_makes_a_difference(name):
  assert differ(*SINGLE[name])


@pytest.mark.parametrize('name', presets.PRESETS)
def test_a_preset_makes_a_difference(name):
  """From its method as it is by default: in the step, or in the recipe."""
  preset = presets.PRESETS[name]
  base = {'sd': SD, 'rl': RL, 'mix': MIX}[preset.kind]
  config = VARIANTS[f'preset:{name}']
  changed = [
    option
    for path, section in sections(config)
    for option in (path + field.name for field in dataclasses.fields(section))
    if option in preset.values
    and is_changed(section, option.rpartition('.')[2])
  ]
  assert changed, 'it sets what is set anyway'
  if any(option.startswith(('method.', 'loss.')) for option in changed):
    assert differ(config, base)


def test_a_kl_in_the_reward_is_bound_to_both_steps():
  config = VARIANTS['rl:kl_coef=0.1,kl_in=reward']
  _, metrics = plainly(config)
  assert metrics['loss'] == metrics['policy'] and metrics['kl_ref']
  # Under a truncating sampler its log-probabilities are not the sampler's.
  config = replace(config, rollout__top_p=0.9, method__policy_loss='reinforce')
  bound = methods.policy_gradient(config, apply_fn, Letters(), TOKENIZER)
  assert isinstance(bound.signal, functools.partial)
  assert bound.signal.keywords['recompute']
