"""Parity with the codes of published methods, in float64.

Every case of a folder is run from its settings: `$SDJAX_GOLDEN`, or the one
beside this file. A case names a reference implementation, what it was told,
and what it gave: the loss and its gradient in the student's logits, or the
advantages. `sdpo.*` has the SDPO loss of lasgroup/SDPO and trl, `newer.*`
other methods; either may be absent. A case of a method that does not exist
here is skipped, with its name.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.models.cache import KV
from sdjax.objectives.divergence import JSD, ForwardKL, ReverseKL
from sdjax.objectives.support import FullVocabulary, SampledToken, TopK
from sdjax.steps import sd, update
from sdjax.steps.student import Shared
from sdjax.steps.teacher import TeacherStates
from sdjax.types import Prompts, Rollout

FOLDER = Path(os.environ.get('SDJAX_GOLDEN', Path(__file__).parent / 'golden'))


def read(name: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
  """Cases and arrays; nothing where the folder has no such file."""
  path = FOLDER / f'{name}.json'
  if not path.exists():
    return {}, {}
  arrays = np.load(path.with_suffix('.npz'))
  return json.loads(path.read_text()), dict(arrays.items())


CASES, DATA = read('sdpo')
NEWER, NEWER_DATA = read('newer')

DIAGNOSTICS = {'contrast', 'selected', 'divergence', 'overlap', 'entropy'}
"""Arrays of a case that are on the way to its loss."""

AGGREGATION = {
  'token-mean': 'token_mean',
  'seq-mean-token-mean': 'sequence_mean',
  'seq-mean-token-sum': 'sequence_sum',
  'seq-mean-token-sum-norm': 'sequence_sum_norm',
  'seq-mean over all rows': 'sequence_mean',
}


def options_of(case):
  """Our options for their settings."""
  alpha = case['alpha']
  # Their alpha: 0 is KL(teacher || student), 1 is KL(student || teacher), and
  # between them the teacher's share of the mixture.
  plain = {0.0: ForwardKL(), 1.0: ReverseKL()}
  support = FullVocabulary()
  if not case.get('full_logit', case.get('mode') != 'sampled'):
    support = SampledToken()
  elif case['topk']:
    support = TopK(case['topk'], of='student', tail=case['add_tail'])
  return sd.Options(
    divergence=plain.get(alpha) or JSD(alpha),
    support=support,
    importance_clip=case.get('is_clip') or 0.0,
  )


def row_scale(case):
  """What their means differ from ours by, for each row [B]."""
  tokens = DATA['response_mask'].sum(axis=-1)
  rows = DATA['self_distillation_mask']
  counted = (tokens * rows > 0).sum()
  return {
    'token-mean': np.ones_like(rows),
    # They add 1e-8 to the number of tokens.
    'seq-mean-token-mean': tokens / (tokens + 1e-8),
    'seq-mean-token-sum': np.ones_like(rows),
    # They divide the sum by the width, and not by the number of rows.
    'seq-mean-token-sum-norm': np.full_like(rows, counted),
    # They divide by the rows without a target as well.
    'seq-mean over all rows': np.full_like(rows, counted / rows.size),
  }[case['agg']]


def problem(case, mixing):
  """The case as a step's arguments; row b is question b's only rollout.

  The model's hidden states are its parameters, its head is `mixing`; with the
  identity the parameters are the logits.
  """

  def apply_fn(params, x, *, method, prefix=None, **_):
    if method == 'head':
      return x @ mixing
    states = params[:, None, :1] if prefix is None else params[:, None, 1:]
    nothing = jnp.zeros((1, *x.shape, 1, 1))
    return states, KV(k=nothing, v=nothing)

  def hidden(logits):
    return jnp.array(logits) @ jnp.linalg.inv(mixing)

  num_b, width = DATA['ids'].shape
  weight = row_scale(case)[:, None, None]
  if case.get('rollout_is'):
    weight = weight * DATA['rollout_is_weights'][:, None]
  rollout = Rollout(
    ids=jnp.array(DATA['ids'], jnp.int32)[:, None],
    length=jnp.full((num_b, 1), width),
    behavior_logp=jnp.array(DATA['old_logps'])[:, None],
    entropy=jnp.zeros((num_b, 1, width)),
    finished=jnp.ones((num_b, 1), bool),
  )
  signal = sd.Signal(
    sample_mask=jnp.array(DATA['self_distillation_mask'] > 0)[:, None],
    token_mask=jnp.array(DATA['response_mask'] > 0)[:, None],
    weight=jnp.broadcast_to(jnp.array(weight), (num_b, 1, width)),
    teacher=TeacherStates(
      hidden=hidden(DATA['teacher_logits'])[:, None, :, None],
      mask=jnp.ones((num_b, 1, 1), bool),
    ),
  )
  prompts = Prompts(
    ids=jnp.zeros((num_b, 1), jnp.int32),
    length=jnp.ones(num_b, jnp.int32),
    question_id=jnp.arange(num_b),
  )
  return apply_fn, hidden(DATA['student_logits']), prompts, rollout, signal


def mixings():
  """Heads: none at all, and a real one."""
  size = DATA['student_logits'].shape[-1]
  rng = np.random.default_rng(0)
  return {
    'logits': np.eye(size),
    'hidden': np.eye(size) + 0.3 * rng.standard_normal((size, size)),
  }


def test_there_are_cases():
  assert CASES or NEWER
  assert {case['agg'] for case in CASES.values()} <= AGGREGATION.keys()


@pytest.mark.parametrize(
  'start, chunk', [('logits', 99), ('hidden', 1), ('hidden', 2), ('hidden', 99)]
)
@pytest.mark.parametrize('name', CASES)
def test_loss_and_gradient(name, start, chunk):
  case = CASES[name]
  with jax.enable_x64(True):
    mixing = jnp.array(mixings()[start])
    apply_fn, params, *batch = problem(case, mixing)
    loss_fn = functools.partial(
      sd.loss, apply_fn, options=options_of(case), shared=Shared(chunk=chunk)
    )
    step = functools.partial(
      update.gradient,
      loss_fn,
      options=update.Options(aggregation=AGGREGATION[case['agg']]),
    )
    slope, metrics = jax.jit(step)(params, None, None, *batch)
    # By the chain rule through logits = hidden @ mixing.
    slope = slope @ jnp.linalg.inv(mixing).T
  assert metrics['loss'].dtype == slope.dtype == np.float64
  np.testing.assert_allclose(metrics['loss'], case['loss'], rtol=0, atol=1e-10)
  np.testing.assert_allclose(
    np.abs(slope).sum(), case['grad_abs_sum'], rtol=0, atol=1e-10
  )
  np.testing.assert_allclose(slope, DATA['grad/' + name], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
  'name', [name for name in CASES if 'per_token/' + name in DATA]
)
def test_loss_of_each_token(name):
  case = CASES[name]
  options = options_of(case)
  with jax.enable_x64(True):
    apply_fn, params, prompts, rollout, signal = problem(
      case | {'agg': 'token-mean'}, jnp.eye(DATA['student_logits'].shape[-1])
    )
    student = sd.compared(
      apply_fn, params, None, None, prompts, rollout, signal, options, Shared()
    )
    each = sd.token_loss(student, rollout, signal, options)[:, 0]
  mask = DATA['response_mask'] > 0
  np.testing.assert_allclose(
    each[mask], DATA['per_token/' + name][mask], rtol=0, atol=1e-10
  )


@pytest.mark.parametrize('name', NEWER)
def test_newer_methods(name):
  case = NEWER[name]
  with jax.enable_x64(True):
    try:
      found = golden_cases.run(case, NEWER_DATA)
    except golden_cases.Missing as error:
      pytest.skip(f'{name}: {error} does not exist here')
  want = {
    array: NEWER_DATA[f'{array}/{name}']
    for array in case['arrays']
    if array not in DIAGNOSTICS
  }
  if 'loss' in case:
    want |= {'loss': case['loss'], 'grad_abs_sum': case['grad_abs_sum']}
    found['grad_abs_sum'] = np.abs(found['grad']).sum()
  assert want
  for key, value in want.items():
    np.testing.assert_allclose(
      found[key], value, rtol=0, atol=1e-10, err_msg=key
    )
