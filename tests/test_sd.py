import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import (
  VOCAB,
  assert_close,
  batch,
  chain,
  largest_logits,
  model,
  signal_then_loss,
  weights,
)

from sdjax.feedback.strategies import Demonstrations
from sdjax.objectives.divergence import JSD, ForwardKL
from sdjax.objectives.pooling import Mixture, SequenceMixture
from sdjax.objectives.reference_kl import K3
from sdjax.steps import sd
from sdjax.steps.sampling import Sampling
from sdjax.steps.student import Shared
from sdjax.steps.teacher import teacher_tokens
from sdjax.types import Prompts, Rollout, TeacherContexts

STUDENT = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
TEACHER = np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6], [0.6, 0.2, 0.2]])


def by_hand(options=None, index=((0,),), teacher=TEACHER, ref=None, **shared):
  """SD loss of one question: prompt `1`, rollout `2 0` with 2 tokens."""
  apply_fn, params = chain(STUDENT)
  _, teacher_params = chain(teacher)
  prompts = Prompts(
    ids=jnp.array([[0, 1]]),
    length=jnp.array([1]),
    question_id=jnp.array([0]),
  )
  zeros = jnp.zeros((1, 1, 3))
  rollout = Rollout(
    ids=jnp.array([[[2, 0, 0]]]),
    length=jnp.array([[2]]),
    behavior_logp=zeros,
    entropy=zeros,
    finished=jnp.ones((1, 1), bool),
  )
  # Context 0 ends in token 1, context 1 in token 0.
  evidence = TeacherContexts(
    context_ids=jnp.array([[[2, 1], [1, 0]]]),
    context_length=jnp.array([[2, 2]]),
    context_index=jnp.array([index]),
    context_mask=jnp.ones((1, 1, len(index[0])), bool),
  )
  ref_params = None if ref is None else chain(ref)[1]
  return signal_then_loss(
    sd,
    apply_fn,
    params,
    teacher_params,
    ref_params,
    (prompts, rollout, evidence),
    sd.Options(importance_clip=0.0, **(options or {})),
    **shared,
  )


def kl(p, q):
  return np.sum(p * np.log(p / q))


def test_reverse_kl_by_hand():
  # Token 2 after 1, token 0 after 2: rows 1 and 2, half each.
  loss, metrics = by_hand()
  want = (kl(STUDENT[1], TEACHER[1]) + kl(STUDENT[2], TEACHER[2])) / 2
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  np.testing.assert_allclose(metrics['divergence'], want, rtol=1e-5)
  ratio = (np.log(0.6 / 0.7) + np.log(0.6 / 0.3)) / 2
  np.testing.assert_allclose(metrics['teacher_log_ratio'], ratio, rtol=1e-5)
  entropy = -np.sum(STUDENT[1:] * np.log(STUDENT[1:])) / 2
  np.testing.assert_allclose(metrics['entropy'], entropy, rtol=1e-5)


def test_forward_kl_and_jsd_by_hand():
  loss, _ = by_hand({'divergence': ForwardKL()})
  want = (kl(TEACHER[1], STUDENT[1]) + kl(TEACHER[2], STUDENT[2])) / 2
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  loss, _ = by_hand({'divergence': JSD(alpha=0.25)})
  mix = 0.75 * STUDENT + 0.25 * TEACHER
  want = sum(
    0.75 * kl(STUDENT[i], mix[i]) + 0.25 * kl(TEACHER[i], mix[i])
    for i in (1, 2)
  )
  np.testing.assert_allclose(loss, want / 2, rtol=1e-5)


def test_temperature_applies_to_both_sides():
  loss, _ = by_hand(sampling=Sampling(0.5))
  p, q = (x**2 / (x**2).sum(-1, keepdims=True) for x in (STUDENT, TEACHER))
  want = (kl(p[1], q[1]) + kl(p[2], q[2])) / 2
  np.testing.assert_allclose(loss, want, rtol=1e-5)


def test_the_temperature_of_the_teacher_is_its_own():
  loss, _ = by_hand({'teacher_temperature': 0.5})
  q = TEACHER**2 / (TEACHER**2).sum(-1, keepdims=True)
  want = (kl(STUDENT[1], q[1]) + kl(STUDENT[2], q[2])) / 2
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  # Of several teachers it is the pooled distribution that is sharpened.
  options = {
    'teacher_temperature': 0.5,
    'pooling': Mixture(),
    'demonstrations': Demonstrations(count=2),
  }
  loss, _ = by_hand(options, index=((0, 1),))
  pooled = (TEACHER[1] + TEACHER[0]) ** 2
  first = kl(STUDENT[1], pooled / pooled.sum())
  want = (first + kl(STUDENT[2], q[2])) / 2
  np.testing.assert_allclose(loss, want, rtol=1e-5)


def test_two_teachers_by_hand():
  # The second context ends in 0, so its first token has row 0.
  loss, _ = by_hand(index=((0, 1),))
  first = (kl(STUDENT[1], TEACHER[1]) + kl(STUDENT[1], TEACHER[0])) / 2
  want = (first + kl(STUDENT[2], TEACHER[2])) / 2
  np.testing.assert_allclose(loss, want, rtol=1e-5)


def test_the_student_is_its_own_perfect_teacher():
  loss, metrics = by_hand(teacher=STUDENT)
  np.testing.assert_allclose(loss, 0, atol=1e-6)
  np.testing.assert_allclose(metrics['teacher_log_ratio'], 0, atol=1e-6)


def test_kl_to_the_reference_by_hand():
  plain, _ = by_hand()
  loss, metrics = by_hand(ref=TEACHER, kl=K3(0.5))
  gaps = np.log([0.6 / 0.7, 0.6 / 0.3])
  want = np.mean(np.exp(gaps) - gaps - 1)
  np.testing.assert_allclose(metrics['kl_ref'], want, rtol=1e-4)
  np.testing.assert_allclose(loss, plain + 0.5 * want, rtol=1e-5)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'support': 'sampled', 'divergence': JSD()}, "not\\s+'jsd'"),
    ({'support': 'top'}, "support='top': 'top' is not one of"),
    ({'divergence': 'kl'}, "divergence='kl': 'kl' is not one of"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    by_hand(options)


@functools.cache
def signal_of(**changes):
  """The signal of the tiny decoder's batch, with changed evidence."""
  apply_fn, params = model(seed=1)
  prompts, rollout, evidence = batch()
  evidence = replace(evidence.sd, **dict(changes))
  return jax.jit(functools.partial(sd.signal_step, apply_fn))(
    params, params, None, prompts, rollout, evidence
  )


@functools.cache
def loss_and_gradient(dtype='float32', options=None, **shared):
  """Compiled `(params, prompts, rollout, signal)` to loss and gradient."""
  apply_fn, _ = model(dtype=dtype)
  _, teacher_params = model(seed=1)

  def f(params, prompts, rollout, signal):
    return sd.loss(
      apply_fn,
      params,
      teacher_params,
      None,
      prompts,
      rollout,
      signal,
      weights(rollout, signal.sample_mask),
      options or sd.Options(),
      Shared(**shared),
    )

  return jax.jit(jax.value_and_grad(f, has_aux=True))


def run(signal, rollout=None, **options):
  prompts, own, _ = batch()
  (loss, _), grads = loss_and_gradient(**options)(
    model()[1], prompts, rollout or own, signal
  )
  return loss, grads


def taught(signal, **changes):
  """The signal with other states of its teachers."""
  return replace(signal, teacher=replace(signal.teacher, **changes))


def test_the_signal_has_the_stated_shapes():
  signal = signal_of()
  assert signal.teacher.hidden.shape == (4, 3, 5, 2, 16)
  assert signal.sample_mask.tolist() == [
    [True] * 3,
    [False, True, True],
    [True] * 3,
    [True, True, False],
  ]
  assert signal.weight is None and signal.ref_logp is None


def test_losses_of_several_teachers_are_averaged():
  """K = 2 equals the mean of two runs with one teacher each."""
  signal = signal_of()
  whole = signal.teacher.mask.all(-1)
  signal = replace(signal, sample_mask=whole)

  def alone(k):
    only = jnp.arange(2) == k
    return run(taught(signal, mask=signal.teacher.mask & only))

  mean = jax.tree.map(lambda *x: sum(x) / 2, alone(0), alone(1))
  assert_close(run(signal), mean)


ANSWERS, TOKENS = (
  sd.Options(pooling=pooling, demonstrations=Demonstrations(count=2))
  for pooling in (SequenceMixture(), Mixture())
)


def test_teachers_of_whole_answers_count_by_how_they_began_them():
  apply_fn, params = model(seed=1)
  prompts, rollout, evidence = batch()
  signal = jax.jit(
    functools.partial(sd.signal_step, apply_fn, options=ANSWERS)
  )(params, params, None, prompts, rollout, evidence.sd)
  logp, _, found = teacher_tokens(
    apply_fn,
    params,
    None,
    signal.teacher,
    rollout.ids,
    sd.Options().target,
  )
  want = np.cumsum(logp, axis=2) - logp
  np.testing.assert_allclose(signal.teacher.log_weight, want, atol=1e-5)
  # With one teacher there is nothing to weigh.
  only = taught(signal, mask=signal.teacher.mask.at[..., 1].set(False))
  assert_close(run(only, options=ANSWERS), run(only))
  assert bool(found.all(axis=-1).any())
  mixed = run(signal, options=TOKENS)[0]
  plain = run(taught(signal, log_weight=None), options=TOKENS)[0]
  assert abs(float(mixed - plain)) > 1e-4


def test_a_teacher_that_is_masked_says_nothing():
  signal = signal_of()
  hidden = signal.teacher.hidden
  noise = jax.random.normal(jax.random.key(0), hidden.shape)
  hidden = jnp.where(signal.teacher.mask[:, :, None, :, None], hidden, noise)
  assert_close(run(taught(signal, hidden=hidden)), run(signal), 1e-6)


def test_rollouts_without_a_target_change_nothing():
  _, rollout, _ = batch()
  signal = signal_of()
  off = ~signal.sample_mask
  other = replace(
    rollout,
    ids=jnp.where(off[..., None], 7, rollout.ids),
    length=jnp.where(off, 5, rollout.length),
  )
  assert off.sum() == 2
  assert_close(run(signal, other), run(signal), 1e-6)
  # And those with one do.
  other = replace(rollout, ids=jnp.where(off[..., None], rollout.ids, 7))
  assert abs(run(signal, other)[0] - run(signal)[0]) > 1e-3


def test_no_target_at_all_is_a_zero_gradient():
  signal = signal_of()
  none = replace(
    taught(signal, mask=jnp.zeros_like(signal.teacher.mask)),
    sample_mask=jnp.zeros_like(signal.sample_mask),
  )
  loss, grads = run(none)
  assert loss == 0
  assert all((g == 0).all() for g in jax.tree.leaves(grads))


def test_columns_behind_a_rollouts_end_change_nothing():
  _, rollout, _ = batch()
  padding = jnp.arange(5) >= rollout.length[..., None]
  assert padding.any()
  signal = signal_of()
  other = replace(rollout, ids=jnp.where(padding, 9, rollout.ids))
  hidden = jnp.where(padding[..., None, None], 3.0, signal.teacher.hidden)
  assert_close(run(taught(signal, hidden=hidden), other), run(signal), 1e-6)


def test_chunks_change_nothing():
  assert_close(run(signal_of(), chunk=2), run(signal_of()), 1e-5)


def test_the_teacher_is_constant():
  apply_fn, params = model()
  data = batch()

  def f(teacher_params):
    return signal_then_loss(
      sd, apply_fn, params, teacher_params, teacher_params, data, kl=K3(1.0)
    )[0]

  grads = jax.jit(jax.grad(f))(model(seed=1)[1])
  assert all((g == 0).all() for g in jax.tree.leaves(grads))


def test_the_teachers_score_does_not_depend_on_the_padding_width():
  prompts, rollout, evidence = batch()
  evidence = evidence.sd
  apply_fn, params = model(seed=1)
  wide = replace(
    evidence,
    context_ids=jnp.pad(
      jnp.asarray(evidence.context_ids),
      ((0, 0), (0, 1), (4, 0)),
      constant_values=3,
    ),
    context_length=jnp.pad(
      jnp.asarray(evidence.context_length), ((0, 0), (0, 1)), constant_values=1
    ),
  )
  signal = jax.jit(functools.partial(sd.signal_step, apply_fn))(
    params, params, None, prompts, rollout, wide
  )
  want = signal_of()
  assert_close(signal.teacher.hidden, want.teacher.hidden)
  assert_close(run(signal), run(want))


def test_bfloat16_is_finite_and_close():
  prompts, rollout, _ = batch()
  _, params = model()
  signal = signal_of()
  want, _ = run(signal)
  narrow = taught(signal, hidden=signal.teacher.hidden.astype(jnp.bfloat16))
  (loss, _), grads = loss_and_gradient('bfloat16')(
    params, prompts, rollout, narrow
  )
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, want, rtol=1e-2)
  assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize('divergence', ['reverse_kl', 'jsd'])
def test_logits_exist_for_one_chunk_only(divergence):
  vocab, num_q, num_g, width, num_k = 199, 4, 3, 5, 2
  apply_fn, params = model(vocab_size=vocab)
  data = batch()

  def trace(chunk):
    def f(params):
      return signal_then_loss(
        sd,
        apply_fn,
        params,
        params,
        params,
        data,
        sd.Options(divergence=divergence),
        chunk=chunk,
        kl=K3(0.1),
      )[0]

    return largest_logits(jax.make_jaxpr(jax.value_and_grad(f))(params), vocab)

  assert VOCAB < vocab
  all_logits = num_q * num_g * width * vocab
  largest, logits = trace(chunk=1)
  assert logits == num_q * num_g * num_k * vocab
  assert largest < all_logits
  if divergence == 'reverse_kl':
    # The measure sees them when they are there.
    assert trace(chunk=width)[1] == all_logits * num_k
