import jax
import jax.numpy as jnp
import numpy as np
from models import equations

from sdjax.models import attention
from sdjax.models.attention import Segment
from sdjax.models.cache import KV, Prefix, Suffix, append, empty_suffix

attend = jax.jit(attention.attend)


def draw(*shape, seed=0):
  return (
    np.random.default_rng([seed, *shape])
    .standard_normal(shape)
    .astype(np.float32)
  )


def one_key(value):
  return jnp.array(value, jnp.float32).reshape(1, 1, 1, 1)


def test_attend_by_hand():
  # Scores 0 and ln 3, so weights 1/4 and 3/4 of the values 4 and 8.
  q = jnp.ones((1, 1, 1, 1, 1))
  seen = jnp.ones((1, 1, 1, 1), bool)
  first = Segment(one_key(0), one_key(4), seen)
  second = Segment(one_key(np.log(3)), one_key(8), seen)
  out = attend(q, [first, second], 1.0)
  np.testing.assert_allclose(out.item(), 7, rtol=1e-6)
  out = attend(q, [first, second._replace(mask=~seen)], 1.0)
  np.testing.assert_allclose(out.item(), 4, rtol=1e-6)


def test_attend_scales_the_scores():
  # q . k = 2 ln 3, times 1/2: score ln 3 against 0.
  q = jnp.ones((1, 1, 1, 1, 4))
  k = jnp.stack([jnp.zeros(4), jnp.full(4, np.log(3) / 2)]).reshape(1, 2, 1, 4)
  v = jnp.stack([jnp.zeros(4), jnp.ones(4)]).reshape(1, 2, 1, 4)
  out = attend(q, [Segment(k, v, jnp.ones((1, 1, 1, 2), bool))], 0.5)
  np.testing.assert_allclose(out.ravel(), 0.75, rtol=1e-6)


def test_attend_equals_a_loop_over_heads_and_samples():
  num_q, num_g, num_t, num_s, heads, kv_heads, dim = 2, 3, 4, 5, 4, 2, 6
  q = draw(num_q, num_g, num_t, heads, dim)
  shared_k, shared_v = (
    draw(num_q, num_s, kv_heads, dim, seed=s) for s in (1, 2)
  )
  own_k, own_v = (
    draw(num_q, num_g, num_t, kv_heads, dim, seed=s) for s in (3, 4)
  )
  rng = np.random.default_rng(0)
  shared_mask = rng.random((num_q, num_g, 1, num_s)) < 0.6
  own_mask = np.tril(np.ones((num_t, num_t), bool))[None, None]
  out = attend(
    jnp.array(q),
    [
      Segment(jnp.array(shared_k), jnp.array(shared_v), jnp.array(shared_mask)),
      Segment(jnp.array(own_k), jnp.array(own_v), jnp.array(own_mask)),
    ],
    dim**-0.5,
  )
  for i in range(num_q):
    for g in range(num_g):
      for t in range(num_t):
        for n in range(heads):
          m = n // (heads // kv_heads)
          seen = shared_mask[i, g, 0]
          k = np.concatenate([shared_k[i, seen, m], own_k[i, g, : t + 1, m]])
          v = np.concatenate([shared_v[i, seen, m], own_v[i, g, : t + 1, m]])
          weight = np.exp(k @ q[i, g, t, n] / np.sqrt(dim))
          want = weight @ v / weight.sum()
          np.testing.assert_allclose(out[i, g, t, n], want, atol=1e-5)


def test_a_row_that_sees_nothing_is_finite():
  x = jnp.array(draw(1, 1, 2, 1, 4))

  def total(x):
    blind = jnp.zeros((1, 1, 1, 2), bool)
    return attention.attend(x, [Segment(x, x, blind)], 0.5).sum()

  value, slope = jax.jit(jax.value_and_grad(total))(x)
  assert jnp.isfinite(value) and jnp.isfinite(slope).all()


def test_bfloat16_attention_has_a_float32_softmax():
  x = jnp.array(draw(1, 1, 4, 2, 8), jnp.bfloat16)
  causal = jnp.tril(jnp.ones((4, 4), bool))[None, None]

  def f(x):
    return attention.attend(x, [Segment(x, x, causal)], 0.5)

  assert f(x).dtype == jnp.bfloat16
  exps = [
    e for e in equations(jax.make_jaxpr(f)(x)) if e.primitive.name == 'exp'
  ]
  assert exps and all(e.outvars[0].aval.dtype == jnp.float32 for e in exps)


def test_suffix_grows_behind_its_filled_columns():
  block = jnp.zeros((1, 2, 1, 5, 1, 2), jnp.bfloat16)
  prefix = Prefix(kv=KV(k=block, v=block), length=jnp.ones((2, 1), jnp.int32))
  suffix = empty_suffix(prefix, num_samples=3, width=4)
  assert suffix.kv.k.shape == (1, 2, 3, 4, 1, 2)
  assert suffix.kv.v.dtype == jnp.bfloat16
  for size, value in ((1, 1.0), (2, 2.0)):
    new = jnp.full((1, 2, 3, size, 1, 2), value)
    suffix = append(suffix, KV(k=new, v=-new))
  assert isinstance(suffix, Suffix) and suffix.filled == 3
  assert suffix.kv.k[0, 1, 2, :, 0, 1].tolist() == [1, 2, 2, 0]
  assert suffix.kv.v[0, 1, 2, :, 0, 1].tolist() == [-1, -2, -2, 0]


def test_a_sample_has_the_length_of_its_own_context():
  empty = jnp.zeros((1, 2, 3, 4, 1, 1))
  prefix = Prefix(
    kv=KV(k=empty, v=empty),
    length=jnp.array([[1, 2, 3], [4, 3, 2]]),
    index=jnp.array([[2, 0, 2, 1], [1, 1, 0, 0]]),
  )
  assert prefix.sample_length().tolist() == [[3, 1, 3, 2], [3, 3, 4, 4]]
