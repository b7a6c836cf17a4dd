import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import VOCAB, assert_close, chain, make_prompts, model

from sdjax.objectives.reference_kl import K3, FullKL
from sdjax.steps.sampling import Sampling
from sdjax.steps.score import (
  completion_hidden,
  log_softmax,
  over_token_chunks,
  prefill,
  take_token,
  token_logp,
)
from sdjax.steps.student import Shared, Signal, counted_tokens, importance_base
from sdjax.steps.student import new_signal as new_fields
from sdjax.types import Rollout

ROWS = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])


def rollout_of(ids, length=None):
  ids = jnp.asarray(ids, jnp.int32)
  zeros = jnp.zeros(ids.shape, jnp.float32)
  if length is None:
    length = jnp.full(ids.shape[:2], ids.shape[2])
  return Rollout(
    ids=ids,
    length=jnp.asarray(length),
    behavior_logp=zeros,
    entropy=zeros,
    finished=jnp.ones(ids.shape[:2], bool),
  )


def score(context, ids, temperature=1.0):
  apply_fn, params = chain(ROWS)
  context = jnp.array(context)[None, None]
  hidden = completion_hidden(
    apply_fn, params, context, jnp.array([[context.shape[-1]]]), ids
  )
  return token_logp(
    apply_fn, params, hidden, ids, temperature=temperature, chunk=2
  )


def test_column_t_scores_token_t_by_hand():
  # The context ends in 1; then 2, 0, 0: .7, .3, .5.
  out = score([0, 1], jnp.array([[[2, 0, 0], [0, 1, 2]]]))
  np.testing.assert_allclose(
    np.exp(out), [[[0.7, 0.3, 0.5], [0.1, 0.25, 0.7]]], rtol=1e-5
  )
  assert out.dtype == jnp.float32


def test_one_token_completions():
  out = score([0, 1], jnp.array([[[2], [0]]]))
  np.testing.assert_allclose(np.exp(out), [[[0.7], [0.1]]], rtol=1e-5)


def test_temperature_divides_the_logits():
  out = score([0, 1], jnp.array([[[2]]]), temperature=0.5)
  np.testing.assert_allclose(np.exp(out), [[[0.49 / 0.54]]], rtol=1e-5)


def new_signal(apply_fn, params, ref_params, prompts, rollout, **shared) -> Any:
  """A signal of what every method shares."""
  batch = (prompts, rollout, Shared(**shared))
  fields = new_fields(apply_fn, params, ref_params, *batch, ratios=False)
  return Signal(**fields)


@pytest.mark.parametrize('kl', [K3(0.1), FullKL(0.1)], ids=str)
def test_the_reference_of_a_signal_by_hand(kl):
  apply_fn, params = chain(ROWS)
  prompts = replace(make_prompts([2], 3), ids=jnp.array([[0, 0, 1]]))
  rollout = rollout_of([[[2, 0]]])
  make = functools.partial(new_signal, kl=kl, sampling=Sampling(0.5))
  out = make(apply_fn, None, params, prompts, rollout)
  assert (out.ref_logp is None) == kl.over_vocabulary
  if kl.over_vocabulary:
    out = replace(
      out,
      ref_logp=token_logp(
        apply_fn, params, out.ref_hidden, rollout.ids, temperature=0.5
      ),
    )
  np.testing.assert_allclose(
    np.exp(out.ref_logp), [[[0.49 / 0.54, 0.09 / 0.34]]], rtol=1e-5
  )
  none = make(apply_fn, None, None, prompts, rollout)
  assert none.ref_logp is None and none.ref_hidden is None


def test_masks_of_a_signal():
  apply_fn, params = chain(ROWS)
  prompts = make_prompts([2], 3)
  rollout = rollout_of([[[2, 0], [0, 0]]], [[2, 1]])
  rollout = replace(rollout, finished=jnp.array([[False, True]]))
  signal = new_signal(
    apply_fn,
    params,
    None,
    prompts,
    rollout,
    skip_tokens=1,
    mask_truncated=True,
  )
  assert signal.sample_mask.tolist() == [[False, True]]
  mask = counted_tokens(rollout, signal)
  assert mask.tolist() == [[[False, True], [False, False]]]


def test_the_sampler_is_corrected_by_hand():
  # The student gives .7 and .3; the sampler says .35 and .9.
  apply_fn, params = chain(ROWS)
  prompts = replace(make_prompts([2], 3), ids=jnp.array([[0, 0, 1]]))
  rollout = replace(
    rollout_of([[[2, 0]]]), behavior_logp=jnp.log(jnp.array([[[0.2, 0.9]]]))
  )
  signal = new_signal(
    apply_fn, params, None, prompts, rollout, sampler_clip=2.0
  )
  assert signal.weight is not None
  np.testing.assert_allclose(np.exp(signal.old_logp), [[[0.7, 0.3]]], rtol=1e-5)
  np.testing.assert_allclose(signal.weight, [[[2, 1 / 3]]], rtol=1e-5)
  np.testing.assert_array_equal(
    importance_base(rollout, signal), signal.old_logp
  )
  plain = new_signal(apply_fn, params, None, prompts, rollout)
  np.testing.assert_array_equal(
    importance_base(rollout, plain), rollout.behavior_logp
  )


def test_several_contexts_need_an_index():
  apply_fn, params = chain(ROWS)
  with pytest.raises(ValueError, match='2 contexts a question but no index'):
    completion_hidden(
      apply_fn,
      params,
      jnp.zeros((1, 2, 3), jnp.int32),
      jnp.ones((1, 2), jnp.int32),
      jnp.zeros((1, 2, 2), jnp.int32),
    )


def test_an_index_picks_each_completions_context():
  apply_fn, params = chain(ROWS)
  hidden = completion_hidden(
    apply_fn,
    params,
    jnp.array([[[0], [1], [2]]]),
    jnp.ones((1, 3), jnp.int32),
    jnp.array([[[0], [0], [0], [0]]]),
    jnp.array([[2, 0, 1, 1]]),
  )
  assert hidden[0, :, 0].argmax(-1).tolist() == [2, 0, 1, 1]


def test_log_softmax_is_at_least_float32():
  out = log_softmax(jnp.zeros(257, jnp.bfloat16), 2.0)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, -np.log(257), rtol=1e-6)
  with jax.enable_x64(True):
    assert log_softmax(jnp.zeros(3, jnp.float64)).dtype == jnp.float64


def test_take_token():
  logp = jnp.arange(12.0).reshape(2, 2, 3)
  out = take_token(logp, jnp.array([[0, 2], [1, 1]]))
  assert out.tolist() == [[0, 5], [7, 10]]


@pytest.mark.parametrize('chunk', [1, 2, 3, 5, 7, 64])
def test_chunks_give_what_the_whole_gives(chunk):
  rng = np.random.default_rng(0)
  x = jnp.array(rng.standard_normal((2, 3, 7, 4)), jnp.float32)
  ids = jnp.array(rng.integers(0, 5, (2, 3, 7)))
  head = jnp.array(rng.standard_normal((4, 5)), jnp.float32)
  weight = jnp.array(rng.standard_normal((2, 3, 7)), jnp.float32)

  def tokens(head, tree, ids):
    logp = log_softmax(tree['x'] @ head)
    return {'logp': take_token(logp, ids), 'both': (tree['x'] * 2, ids)}

  def whole(head, x):
    out = tokens(head, {'x': x}, ids)
    return jnp.sum(weight * out['logp']), out

  def chunked(head, x):
    out = over_token_chunks(
      functools.partial(tokens, head), chunk, {'x': x}, ids
    )
    return jnp.sum(weight * out['logp']), out

  def run(f):
    return jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(head, x)

  assert_close(run(chunked), run(whole), 1e-5)


def test_chunks_run_one_after_another():
  x = jnp.zeros((2, 3, 7, 4))
  jaxpr = jax.make_jaxpr(
    functools.partial(over_token_chunks, lambda x: x.sum(-1), 2)
  )(x)
  (scan,) = (e for e in jaxpr.jaxpr.eqns if e.primitive.name == 'scan')
  assert scan.params['length'] == 4


def test_the_score_does_not_depend_on_the_padding_width():
  apply_fn, params = model()
  rng = np.random.default_rng(0)
  ids = jnp.array(rng.integers(0, VOCAB, (2, 3, 4)), jnp.int32)
  narrow = make_prompts([3, 5], 5)

  @jax.jit
  def run(prompts, ids):
    hidden = completion_hidden(
      apply_fn, params, prompts.ids[:, None], prompts.length[:, None], ids
    )
    return token_logp(apply_fn, params, hidden, ids)

  want = run(narrow, ids)
  wide = make_prompts([3, 5], 11, pad=4)
  wider_ids = jnp.pad(ids, ((0, 0), (0, 0), (0, 3)), constant_values=9)
  np.testing.assert_allclose(run(wide, wider_ids)[..., :4], want, atol=1e-5)


def test_prefill_gives_the_last_real_state():
  apply_fn, params = chain(ROWS)
  prefix, last = prefill(
    apply_fn,
    params,
    jnp.array([[[0, 0, 0, 1, 2]], [[1, 2, 0, 2, 1]]]),
    jnp.array([[2], [4]]),
  )
  assert prefix.length.tolist() == [[2], [4]]
  assert last[:, 0].argmax(-1).tolist() == [2, 1]
