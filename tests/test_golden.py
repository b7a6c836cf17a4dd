"""Parity with the SDPO loss of lasgroup/SDPO and trl, in float64."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.objectives.divergence import divergence, sampled_reverse_kl
from sdjax.objectives.reduce import token_weights

FOLDER = Path(__file__).parent / 'golden'
CASES = json.loads((FOLDER / 'sdpo.json').read_text())
DATA = np.load(FOLDER / 'sdpo.npz')

# Their alpha: 0 is KL(teacher || student), 1 is KL(student || teacher), and
# between them the teacher's share of the mixture.
OBJECTIVES = {0.0: 'forward_kl', 0.5: 'jsd', 1.0: 'reverse_kl'}
AGGREGATION = {
  'token-mean': 'token_mean',
  'seq-mean over all rows': 'sequence_mean',
}
COVERED = [
  name
  for name, case in CASES.items()
  if case['topk'] is None and case['is_clip'] is None
]


def per_token(case, logits, ids):
  student = jax.nn.log_softmax(logits)
  teacher = jax.nn.log_softmax(jnp.array(DATA['teacher_logits']))
  if case.get('full_logit', case.get('mode') == 'full'):
    return divergence(OBJECTIVES[case['alpha']], case['alpha'])(
      student, teacher
    )
  taken = (
    jnp.take_along_axis(x, ids[..., None], -1)[..., 0]
    for x in (student, teacher)
  )
  return sampled_reverse_kl(*taken)


def test_the_cases_are_there():
  assert len(COVERED) == 6


@pytest.mark.parametrize('name', COVERED)
def test_loss_and_gradient(name):
  case = CASES[name]
  with jax.enable_x64(True):
    ids = jnp.array(DATA['ids'])
    sample_mask = jnp.array(DATA['self_distillation_mask'] > 0)
    weight = token_weights(
      jnp.array(DATA['response_mask'] > 0)[:, None],
      sample_mask[:, None],
      AGGREGATION[case['agg']],
    )[:, 0]
    if case['agg'] == 'seq-mean over all rows':
      # They divide by the rows without a target as well.
      weight = weight * DATA['self_distillation_mask'].mean()

    def loss(logits):
      return jnp.sum(weight * per_token(case, logits, ids))

    value, slope = jax.value_and_grad(loss)(jnp.array(DATA['student_logits']))
  assert value.dtype == np.float64
  np.testing.assert_allclose(value, case['loss'], rtol=1e-10)
  np.testing.assert_allclose(
    np.abs(slope).sum(), case['grad_abs_sum'], rtol=1e-10
  )
  np.testing.assert_allclose(slope, DATA['grad/' + name], rtol=0, atol=1e-10)


@pytest.mark.parametrize('name', [n for n in COVERED if n.startswith('trl')])
def test_loss_of_each_token(name):
  with jax.enable_x64(True):
    each = per_token(
      CASES[name], jnp.array(DATA['student_logits']), jnp.array(DATA['ids'])
    )
  mask = DATA['response_mask'] > 0
  np.testing.assert_allclose(
    each[mask], DATA['per_token/' + name][mask], rtol=1e-10, atol=1e-12
  )
