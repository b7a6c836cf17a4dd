import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import VOCAB, chain, make_prompts, model

from sdjax import rng
from sdjax.steps.rollout import rollout_step
from sdjax.steps.sampling import Sampling
from sdjax.steps.score import completion_hidden, log_softmax
from sdjax.types import Prompts, length_mask

EOS = (1, 5)
WIDTH = 6


@functools.cache
def sampler(**options):
  """A compiled `rollout_step` of the tiny decoder."""
  apply_fn, params = model()
  options = {
    'num_samples': 3,
    'max_new_tokens': WIDTH,
    'eos_ids': EOS,
    **options,
  }
  step = jax.jit(functools.partial(rollout_step, apply_fn, **options))
  return functools.partial(step, params)


PROMPTS = make_prompts([2, 7, 5], 8)
KEY = rng.stream(0, 'rollout', 0)


def rows(rollout):
  """Everything of a rollout, one tuple a sample."""
  num_q, num_g = rollout.length.shape
  return [
    [
      tuple(np.asarray(rollout.ids[q, g, : rollout.length[q, g]]).tolist())
      for g in range(num_g)
    ]
    for q in range(num_q)
  ]


@pytest.mark.parametrize(
  'sampling', [Sampling(), Sampling(temperature=0.7, top_k=9, top_p=0.9)]
)
def test_logps_equal_the_full_forward(sampling):
  apply_fn, params = model()
  out = sampler(sampling=sampling)(PROMPTS, KEY)
  hidden = jax.jit(functools.partial(completion_hidden, apply_fn))(
    params, PROMPTS.ids[:, None], PROMPTS.length[:, None], out.ids
  )
  logits = np.asarray(apply_fn(params, hidden, method='head'))
  own = np.asarray(log_softmax(jnp.array(logits)))
  entropy = -(np.exp(own) * own).sum(-1)
  logits = logits / sampling.temperature
  # Truncation, once more and by sorting: first k, then the mass.
  order = np.argsort(-logits, axis=-1)
  rank = np.argsort(order, axis=-1)
  kept = rank < (sampling.top_k or VOCAB)
  probs = np.where(kept, np.exp(logits), 0)
  probs /= probs.sum(-1, keepdims=True)
  ranked = np.take_along_axis(probs, order, -1)
  before = np.cumsum(ranked, -1) - ranked
  kept &= np.take_along_axis(before, rank, -1) < sampling.top_p
  probs = np.where(kept, probs, 0)
  probs /= probs.sum(-1, keepdims=True)
  taken = np.take_along_axis(probs, np.asarray(out.ids)[..., None], -1)[..., 0]
  mask = np.asarray(length_mask(out.length, WIDTH))
  assert (taken[mask] > 0).all()
  np.testing.assert_allclose(
    out.behavior_logp[mask], np.log(taken[mask]), atol=1e-5
  )
  np.testing.assert_allclose(out.entropy[mask], entropy[mask], atol=1e-5)
  for field in (out.behavior_logp, out.entropy, out.ids):
    assert (np.asarray(field)[~mask] == 0).all()


def test_lengths_and_ends():
  out = sampler(num_samples=16)(PROMPTS, KEY)
  ids, length = np.asarray(out.ids), np.asarray(out.length)
  ended = np.isin(ids, EOS) & np.asarray(length_mask(out.length, WIDTH))
  assert out.finished.any() and not out.finished.all()
  np.testing.assert_array_equal(ended.any(-1), out.finished)
  # An end is a completion's last token, and what has none is full.
  assert (ended.sum(-1) <= 1).all()
  last = np.take_along_axis(ids, length[..., None] - 1, -1)[..., 0]
  assert np.isin(last[out.finished], EOS).all()
  assert (length[~np.asarray(out.finished)] == WIDTH).all()
  assert set(last[out.finished].tolist()) == set(EOS)


def test_greedy_takes_the_best_token():
  apply_fn, params = model()
  out = sampler(sampling=Sampling(temperature=0))(PROMPTS, KEY)
  assert (out.behavior_logp == 0).all()
  mask = np.asarray(length_mask(out.length, WIDTH))
  hidden = jax.jit(functools.partial(completion_hidden, apply_fn))(
    params, PROMPTS.ids[:, None], PROMPTS.length[:, None], out.ids
  )
  best = apply_fn(params, hidden, method='head').argmax(-1)
  np.testing.assert_array_equal(out.ids[mask], best[mask])
  assert (out.entropy[mask] > 0).all()


def test_a_sample_does_not_depend_on_what_is_beside_it():
  want = rows(sampler()(PROMPTS, KEY))
  assert len({row for group in want for row in group}) == 9
  for q in range(3):
    alone = jax.tree.map(lambda x, q=q: x[q : q + 1], PROMPTS)
    assert rows(sampler()(alone, KEY))[0] == want[q]
  turned = jax.tree.map(lambda x: x[::-1], PROMPTS)
  assert rows(sampler()(turned, KEY))[::-1] == want
  more = rows(sampler(num_samples=16)(PROMPTS, KEY))
  assert [group[:3] for group in more] == want
  wide = replace(PROMPTS, ids=jnp.pad(PROMPTS.ids, ((0, 0), (3, 0))))
  assert rows(sampler()(wide, KEY)) == want


def test_a_prefix_of_a_longer_rollout_is_the_shorter_one():
  short = rows(sampler(max_new_tokens=1)(PROMPTS, KEY))
  long = rows(sampler()(PROMPTS, KEY))
  assert short == [[row[:1] for row in group] for group in long]


def test_another_step_or_question_id_draws_anew():
  want = rows(sampler()(PROMPTS, KEY))
  assert rows(sampler()(PROMPTS, rng.stream(0, 'rollout', 1))) != want
  renamed = replace(PROMPTS, question_id=PROMPTS.question_id + 1)
  assert rows(sampler()(renamed, KEY)) != want


def sample_chain(table, first=0, seen=None, **options):
  apply_fn, params = chain(table, seen)
  prompts = Prompts(
    ids=jnp.array([[0, first]]),
    length=jnp.array([2]),
    question_id=jnp.array([0]),
  )
  options = {
    'num_samples': 4,
    'max_new_tokens': 5,
    'eos_ids': (3,),
    **options,
  }
  out = jax.jit(functools.partial(rollout_step, apply_fn, **options))(
    params, prompts, KEY
  )
  jax.effects_barrier()
  return out


# 0 -> 1 -> 2 -> 3 and 3 stays.
CYCLE = np.eye(4)[[1, 2, 3, 3]]


def test_a_chain_by_hand():
  out = sample_chain(CYCLE)
  assert out.ids.tolist() == [[[1, 2, 3, 0, 0]] * 4]
  assert out.length.tolist() == [[3] * 4]
  assert out.finished.all()
  np.testing.assert_allclose(out.behavior_logp, 0, atol=1e-6)


def test_any_of_the_ends_ends():
  assert sample_chain(CYCLE, eos_ids=(3, 2)).length.tolist() == [[2] * 4]
  endless = sample_chain(CYCLE, eos_ids=())
  assert endless.ids.tolist() == [[[1, 2, 3, 3, 3]] * 4]
  assert not endless.finished.any()


def test_an_end_equal_to_the_padding_token():
  back = np.eye(4)[[1, 2, 0, 3]]  # 0 -> 1 -> 2 -> 0
  out = sample_chain(back, eos_ids=(0,))
  assert out.ids.tolist() == [[[1, 2, 0, 0, 0]] * 4]
  assert out.length.tolist() == [[3] * 4] and out.finished.all()
  cut = sample_chain(back, eos_ids=(0,), max_new_tokens=2)
  assert cut.length.tolist() == [[2] * 4] and not cut.finished.any()


@pytest.mark.parametrize(
  'first, runs', [(2, 1), (1, 2), (0, 3)], ids=['at once', 'second', 'third']
)
def test_decoding_stops_when_all_have_ended(first, runs):
  counted = []
  out = sample_chain(CYCLE, first, lambda: counted.append(1), max_new_tokens=50)
  # One prefill, and one run for each token after the first.
  assert len(counted) == runs
  assert out.length.tolist() == [[runs] * 4]


@pytest.mark.parametrize('num_samples, width', [(1, 1), (1, 4), (3, 1)])
def test_smallest_shapes(num_samples, width):
  out = sample_chain(CYCLE, num_samples=num_samples, max_new_tokens=width)
  assert out.ids.shape == (1, num_samples, width)
  assert out.ids[0, 0].tolist() == [1, 2, 3, 0][:width]
  assert out.finished.tolist() == [[width > 2] * num_samples]


PROBS = np.array([0.5, 0.25, 0.125, 0.125])


def test_frequencies_logps_and_entropy_by_hand():
  # Temperature 2 makes it (2 sqrt 2, 2, sqrt 2, sqrt 2), normalised;
  # the entropy is that of the model itself: 1.75 ln 2.
  out = sample_chain(
    np.tile(PROBS, (4, 1)),
    num_samples=4000,
    max_new_tokens=1,
    sampling=Sampling(temperature=2.0),
  )
  want = np.sqrt(PROBS) / np.sqrt(PROBS).sum()
  share = np.bincount(np.asarray(out.ids).ravel(), minlength=4) / 4000
  # Four standard errors of a share of a half.
  np.testing.assert_allclose(share, want, atol=4 * 0.5 / 4000**0.5)
  np.testing.assert_allclose(
    out.behavior_logp, np.log(want)[np.asarray(out.ids)], atol=1e-5
  )
  np.testing.assert_allclose(out.entropy, 1.75 * np.log(2), rtol=1e-5)


@pytest.mark.parametrize(
  'sampling, kept',
  [
    (Sampling(top_k=2), 2),
    (Sampling(top_p=0.6), 2),
    (Sampling(min_p=0.4), 2),
    (Sampling(top_k=1), 1),
  ],
)
def test_truncated_logps_by_hand(sampling, kept):
  out = sample_chain(
    np.tile(PROBS, (4, 1)), num_samples=64, eos_ids=(), sampling=sampling
  )
  want = PROBS[:kept] / PROBS[:kept].sum()
  assert set(np.asarray(out.ids).ravel().tolist()) == set(range(kept))
  np.testing.assert_allclose(
    out.behavior_logp, np.log(want)[np.asarray(out.ids)], atol=1e-6
  )
  np.testing.assert_allclose(out.entropy, 1.75 * np.log(2), rtol=1e-5)


def test_tokens_of_a_sample_are_drawn_independently():
  out = sample_chain(
    np.full((4, 4), 0.25), num_samples=500, max_new_tokens=2, eos_ids=()
  )
  pairs = np.asarray(out.ids[0]) @ [4, 1]
  share = np.bincount(pairs, minlength=16) / 500
  np.testing.assert_allclose(share, 1 / 16, atol=4 * 0.25 / 500**0.5)


def test_a_bad_option_is_named():
  with pytest.raises(ValueError, match='top_p=0 must be'):
    sample_chain(CYCLE, sampling=Sampling(top_p=0))
