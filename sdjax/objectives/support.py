"""Which events a divergence is taken over: all tokens, or a few and a rest.

A law over the vocabulary becomes one over k chosen tokens, either with all
other tokens as one more event (`tail`) or with the k probabilities scaled to
sum to 1. With a tail no divergence grows: it is the same law seen coarsely.
"""

import jax
import jax.numpy as jnp

SUPPORTS = ('full', 'student_top_k', 'teacher_top_k')
LARGEST = -1e-7  # log of the largest mass the k tokens may have, so that the
# tail keeps some: as the SDPO code has it


def on_support(
  student_logp: jax.Array,
  teacher_logp: jax.Array,
  *,
  support: str,
  top_k: int,
  tail: bool,
) -> tuple[jax.Array, jax.Array]:
  """Restricts two laws to the tokens that one of them finds likeliest.

  The choice of tokens is a constant; gradients flow through the student's
  chosen log-probabilities and through what normalised them.

  Args:
    student_logp: float32 [..., V], nats.
    teacher_logp: float32 [..., V], nats; leading axes broadcast.
    support: `full` (nothing is done), or whose likeliest tokens are chosen:
      `student_top_k` or `teacher_top_k`.
    top_k: k; all of them where V is not larger.
    tail: the other tokens become one last event; else the chosen ones'
      probabilities are scaled to sum to 1.

  Returns:
    Both laws, [..., k + 1] with a tail, [..., k] without one.

  Raises:
    ValueError: for another support, or a k below 1.

  Source: SDPO, arXiv 2601.20802 A.3.
  """
  if support == 'full':
    return student_logp, teacher_logp
  if support not in SUPPORTS:
    raise ValueError(f'support={support!r} is not one of {SUPPORTS}.')
  if top_k < 1:
    raise ValueError(f'top_k={top_k} must be at least 1 for {support!r}.')
  chooser = student_logp if support == 'student_top_k' else teacher_logp
  size = chooser.shape[-1]
  if top_k >= size:
    return student_logp, teacher_logp
  ids = jax.lax.top_k(jax.lax.stop_gradient(chooser), top_k)[1]
  shape = jnp.broadcast_shapes(student_logp.shape[:-1], teacher_logp.shape[:-1])

  def chosen(logp):
    where = jnp.broadcast_to(ids, (*shape, top_k))
    wide = jnp.broadcast_to(logp, (*shape, size))
    kept = jnp.take_along_axis(wide, where, axis=-1)
    mass = jax.nn.logsumexp(kept, axis=-1, keepdims=True)
    if not tail:
      return kept - mass
    rest = jnp.log(-jnp.expm1(jnp.minimum(mass, LARGEST)))
    return jnp.concatenate([kept, rest], axis=-1)

  return chosen(student_logp), chosen(teacher_logp)
