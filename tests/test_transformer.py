import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import (
  VOCAB,
  assert_close,
  config,
  equations,
  left_padded,
  model,
  random_rows,
)

from sdjax.models.cache import append, empty_suffix
from sdjax.models.rope import Rope
from sdjax.models.transformer import AttentionKind, init_params
from sdjax.steps.score import completion_hidden, prefill


def numpy_decoder(params, cfg, ids):
  """Logits [T, V] of one sequence in float64, written out once more."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_eps) * scale

  def turn(x):
    half = cfg.head_dim // 2
    angle = np.arange(len(x))[:, None] / cfg.attention[0].rope.theta ** (
      np.arange(half) / half
    )
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None]
    return np.concatenate([z.real, z.imag], -1)

  x = params['embedding'][np.asarray(ids)]
  size = len(x)
  for i in range(cfg.num_layers):
    layer = jax.tree.map(lambda w, i=i: w[i], params['layers'])
    attn = layer['attn']
    h = norm(x, layer['attn_norm']['scale'])
    q, k, v = (
      (h @ attn[n]['kernel']).reshape(size, -1, cfg.head_dim) for n in 'qkv'
    )
    if cfg.qk_norm == 'head':
      q = norm(q, attn['q_norm']['scale'])
      k = norm(k, attn['k_norm']['scale'])
    q, k = turn(q), turn(k)
    out = np.zeros_like(q)
    for n in range(cfg.num_heads):
      m = n * cfg.num_kv_heads // cfg.num_heads
      score = q[:, n] @ k[:, m].T / np.sqrt(cfg.head_dim)
      score[np.triu_indices(size, 1)] = -np.inf
      weight = np.exp(score - score.max(-1, keepdims=True))
      out[:, n] = weight @ v[:, m] / weight.sum(-1, keepdims=True)
    x = x + out.reshape(size, -1) @ attn['o']['kernel']
    h = norm(x, layer['mlp_norm']['scale'])
    gate = h @ layer['gate']['kernel']
    gate = gate / (1 + np.exp(-gate))
    x = x + (gate * (h @ layer['up']['kernel'])) @ layer['down']['kernel']
  x = norm(x, params['norm']['scale'])
  if cfg.tie_embeddings:
    return x @ params['embedding'].T
  return x @ params['unembedding']


CHANGES = [
  {},
  {
    'num_layers': 3,
    'num_kv_heads': 1,
    'qk_norm': 'none',
    'tie_embeddings': False,
    'attention': (AttentionKind(rope=Rope(theta=100.0)),),
  },
]


@pytest.mark.parametrize('changes', CHANGES, ids=['default', 'changed'])
def test_plain_forward_equals_numpy(changes):
  apply_fn, params = model(**changes)
  ids = random_rows([9], 1)[0]
  logits = jax.jit(apply_fn)(params, jnp.array([ids]))
  want = numpy_decoder(params, config(**changes), ids)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits[0], want, atol=2e-5)


def logits_of(apply_fn, params, context_ids, context_length, ids, index=None):
  hidden = completion_hidden(
    apply_fn, params, context_ids, context_length, ids, index
  )
  return apply_fn(params, hidden, method='head')


def make_batch(num_q, num_g, context, width, seed=0):
  """Contexts and completions of lengths 1 to full; one of each is full."""
  rng = np.random.default_rng([seed, num_q, num_g])
  context_lengths = rng.integers(1, context + 1, num_q)
  context_lengths[0] = context
  contexts = random_rows(context_lengths, seed)
  lengths = rng.integers(1, width + 1, (num_q, num_g))
  lengths[-1, -1] = width
  ids = rng.integers(0, VOCAB, (num_q, num_g, width))
  weight = rng.standard_normal((num_q, num_g, width))
  weight *= np.arange(width) < lengths[..., None]
  return contexts, lengths, ids.astype(np.int32), weight.astype(np.float32)


def padded(contexts, ids, weight, extra_left, extra_right, pad):
  """The batch, wider on either side, the new columns filled with `pad`."""
  width = max(map(len, contexts)) + extra_left
  context_ids, context_length = left_padded(contexts, width, pad)
  ids = np.where(weight == 0, pad, ids)
  right = ((0, 0), (0, 0), (0, extra_right))
  ids = jnp.array(np.pad(ids, right, constant_values=pad))
  return (
    context_ids[:, None],
    context_length[:, None],
    ids,
    jnp.array(np.pad(weight, right)),
  )


def shared_loss(params, context_ids, context_length, ids, weight, index=None):
  """Weighted sum of token log-probabilities; the prefix runs once."""
  apply_fn, _ = model()
  logits = logits_of(apply_fn, params, context_ids, context_length, ids, index)
  logp = jax.nn.log_softmax(logits)
  taken = jnp.take_along_axis(logp, ids[..., None], -1)[..., 0]
  return jnp.sum(weight * taken), taken


def plain_loss(params, rows, pad, ids, weight):
  """The same from plain rows of a context and a completion each."""
  apply_fn, _ = model()
  hidden, _ = apply_fn(params, rows, pad_QG=pad, method='hidden')
  first = rows.shape[-1] - ids.shape[-1] - 1
  logits = apply_fn(params, hidden[:, 0, first:-1], method='head')
  logp = jax.nn.log_softmax(logits)
  taken = jnp.take_along_axis(logp, ids[..., None], -1)[..., 0]
  return jnp.sum(weight * taken), taken


def repeated(context_ids, context_length, ids, weight):
  """Rows [Q*G, C+T], each with its own copy of its context."""
  num_q, num_g, width = ids.shape
  context = context_ids.shape[-1]
  rows = np.concatenate(
    [np.repeat(context_ids, num_g, axis=1), ids], -1
  ).reshape(num_q * num_g, 1, -1)
  pad = np.repeat(context - context_length, num_g, axis=1).reshape(-1, 1)
  return rows, pad, ids.reshape(-1, width), weight.reshape(-1, width)


shared = jax.jit(jax.value_and_grad(shared_loss, has_aux=True))
plain = jax.jit(jax.value_and_grad(plain_loss, has_aux=True))


@pytest.mark.parametrize('num_q, num_g', [(1, 6), (6, 1), (2, 3)])
def test_shared_prefix_equals_repeated_rows(num_q, num_g):
  _, params = model()
  contexts, _, ids, weight = make_batch(num_q, num_g, context=6, width=5)
  batch = padded(contexts, ids, weight, 0, 0, pad=0)
  (value, logp), grads = shared(params, *batch)
  (want, want_logp), want_grads = plain(params, *repeated(*batch))
  live = weight != 0
  assert_close(value, want)
  np.testing.assert_allclose(
    logp[live], want_logp.reshape(logp.shape)[live], atol=1e-5
  )
  assert_close(grads, want_grads)


def test_shared_prefix_equals_unpadded_sequences():
  apply_fn, params = model()
  contexts, lengths, ids, weight = make_batch(3, 2, context=6, width=5)
  context_ids, context_length, ids, _ = padded(contexts, ids, weight, 0, 0, 7)
  logits = jax.jit(functools.partial(logits_of, apply_fn))(
    params, context_ids, context_length, ids
  )
  for q, context in enumerate(contexts):
    for g in range(2):
      row = [*context, *np.asarray(ids[q, g, : lengths[q, g]])]
      want = numpy_decoder(params, config(), row)
      np.testing.assert_allclose(
        logits[q, g, : lengths[q, g]], want[len(context) - 1 : -1], atol=2e-5
      )


@pytest.mark.parametrize('left, right, pad', [(3, 0, 0), (4, 3, 9)])
def test_padding_of_either_part_changes_nothing(left, right, pad):
  _, params = model()
  contexts, _, ids, weight = make_batch(2, 3, context=6, width=5)
  (want, want_logp), want_grads = shared(
    params, *padded(contexts, ids, weight, 0, 0, 0)
  )
  (value, logp), grads = shared(
    params, *padded(contexts, ids, weight, left, right, pad)
  )
  live = weight != 0
  assert_close(value, want)
  np.testing.assert_allclose(logp[..., :5][live], want_logp[live], atol=1e-5)
  assert_close(grads, want_grads)


def test_several_contexts_equal_each_pair_alone():
  _, params = model()
  contexts = random_rows([6, 2, 4, 1, 5, 3], 3)
  context_ids, length = left_padded(contexts, 6)
  context_ids = context_ids.reshape(2, 3, 6)
  length = length.reshape(2, 3)
  index = jnp.array([[2, 0, 2], [1, 1, 0]])
  rng = np.random.default_rng(0)
  ids = jnp.array(rng.integers(0, VOCAB, (2, 3, 5)), jnp.int32)
  weight = jnp.array(rng.standard_normal((2, 3, 5)), jnp.float32)
  (value, logp), grads = shared(params, context_ids, length, ids, weight, index)
  # Each pair as a question of its own.
  pick = jax.vmap(lambda x, i: x[i])
  alone = (
    pick(context_ids, index).reshape(6, 1, 6),
    pick(length, index).reshape(6, 1),
    ids.reshape(6, 1, 5),
    weight.reshape(6, 1, 5),
  )
  (want, want_logp), want_grads = shared(params, *alone)
  assert_close(value, want)
  np.testing.assert_allclose(logp.reshape(6, 1, 5), want_logp, atol=1e-5)
  assert_close(grads, want_grads)


def test_padding_columns_stay_finite():
  apply_fn, params = model()
  ids, length = left_padded(random_rows([1, 4], 0), 6)
  hidden, kv = jax.jit(
    lambda p: apply_fn(
      p, ids[:, None], pad_QG=6 - length[:, None], method='hidden'
    )
  )(params)
  assert all(jnp.isfinite(x).all() for x in (hidden, kv.k, kv.v))


@functools.partial(jax.jit, static_argnames='sizes')
def in_blocks(params, context_ids, context_length, ids, sizes):
  """Logits of the completions, decoded in blocks of the given sizes."""
  apply_fn, _ = model()
  prefix, _ = prefill(apply_fn, params, context_ids, context_length)
  suffix = empty_suffix(prefix, ids.shape[1], ids.shape[2])
  out, start = [], 0
  for size in sizes:
    hidden, kv = apply_fn(
      params,
      ids[..., start : start + size],
      prefix=prefix,
      suffix=suffix,
      method='hidden',
    )
    suffix = append(suffix, kv)
    out.append(apply_fn(params, hidden, method='head'))
    start += size
  return jnp.concatenate(out, axis=2)


@pytest.mark.parametrize('sizes', [(1, 1, 1, 1, 1), (2, 3)])
def test_decoding_in_blocks_equals_one_forward(sizes):
  apply_fn, params = model()
  contexts, _, ids, weight = make_batch(2, 3, context=6, width=5)
  context_ids, length, _, _ = padded(contexts, ids, weight, 1, 0, 0)
  logits = in_blocks(params, context_ids, length, jnp.array(ids), sizes)
  want = jax.jit(functools.partial(logits_of, apply_fn))(
    params, context_ids, length, jnp.array(ids)
  )
  # Column t of a block predicts token t + 1.
  np.testing.assert_allclose(logits[..., :-1, :], want[..., 1:, :], atol=1e-5)


def trace(remat='none', num_layers=2):
  apply_fn, params = model(remat=remat, num_layers=num_layers)
  ids = jnp.zeros((1, 4), jnp.int32)
  return jax.make_jaxpr(
    jax.value_and_grad(lambda p: jnp.sum(apply_fn(p, ids) ** 2))
  )(params)


def count(jaxpr, *names):
  return sum(e.primitive.name in names for e in equations(jaxpr))


def test_layers_are_scanned():
  _, params = model(num_layers=3)
  assert params['layers']['gate']['kernel'].shape == (3, 16, 24)
  two, six = trace(num_layers=2), trace(num_layers=6)
  assert len(list(equations(two))) == len(list(equations(six)))
  scans = [e for e in equations(six) if e.primitive.name == 'scan']
  assert scans and all(e.params['length'] == 6 for e in scans)


REMAT_NAMES = ('checkpoint', 'remat', 'remat2')


def test_remat_recomputes_what_its_policy_says():
  none, dots, full = (trace(r) for r in ('none', 'dots', 'full'))
  assert count(none, *REMAT_NAMES) == 0
  assert count(dots, *REMAT_NAMES) > 0
  assert count(full, *REMAT_NAMES) > 0
  products = [count(x, 'dot_general') for x in (none, dots, full)]
  # `dots` keeps the 7 products with weights and recomputes the scores;
  # `full` recomputes those 7 as well, but the last one, whose value the
  # backward pass does not need.
  assert products[0] < products[1] < products[2]
  assert products[2] - products[1] >= 6


def test_remat_keeps_less():
  def kept(remat):
    """Numbers that the forward scan hands to the backward scan."""
    forward = next(
      e for e in equations(trace(remat)) if e.primitive.name == 'scan'
    )
    return sum(v.aval.size for v in forward.outvars)

  assert kept('full') < kept('dots') < kept('none')


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_remat_gives_the_same_loss_and_gradient(remat):
  _, params = model()
  other, _ = model(remat=remat)
  contexts, _, ids, weight = make_batch(2, 3, context=6, width=5)
  batch = padded(contexts, ids, weight, 0, 0, 0)

  def f(params):
    logits = logits_of(other, params, *batch[:3])
    taken = jnp.take_along_axis(
      jax.nn.log_softmax(logits), batch[2][..., None], -1
    )
    return jnp.sum(batch[3] * taken[..., 0])

  value, grads = jax.jit(jax.value_and_grad(f))(params)
  (want, _), want_grads = shared(params, *batch)
  assert_close(value, want)
  assert_close(grads, want_grads)


def test_bfloat16_computes_in_bfloat16_and_heads_in_float32():
  apply_fn, params = model(dtype='bfloat16', param_dtype='bfloat16')
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(params))
  ids = random_rows([9], 1)[0]
  hidden, _ = jax.jit(functools.partial(apply_fn, method='hidden'))(
    params, jnp.array([[ids]])
  )
  assert hidden.dtype == jnp.bfloat16
  logits = apply_fn(params, hidden, method='head')[0, 0]
  assert logits.dtype == jnp.float32
  want = numpy_decoder(params, config(dtype='bfloat16'), ids)
  # 8 bits of mantissa over some twenty roundings: a few percent of the
  # spread of the logits.
  np.testing.assert_allclose(logits, want, atol=0.1 * want.std())


def test_init_keeps_the_size_of_what_passes_through():
  cfg = config(param_dtype='bfloat16')
  params = jax.jit(functools.partial(init_params, cfg))(jax.random.key(0))
  assert (params['norm']['scale'] == 1).all()
  assert params['embedding'].shape == (VOCAB, 16)
  assert params['embedding'].dtype == jnp.bfloat16
  # 16 and 24 inputs: standard deviations 1/4 and 24^-1/2.
  for x, std in (
    (params['embedding'], 0.25),
    (params['layers']['attn']['q']['kernel'], 0.25),
    (params['layers']['down']['kernel'], 24**-0.5),
  ):
    np.testing.assert_allclose(np.asarray(x, np.float32).std(), std, rtol=0.15)
