"""Divergences between the student's and the teacher's next-token law.

Each takes log-probabilities over the vocabulary and gives nats per token.
The teacher's are constants: callers stop their gradient where they are made.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def forward_kl(student_logp: jax.Array, teacher_logp: jax.Array) -> jax.Array:
  """KL(teacher || student) = sum_v q_v (log q_v - log p_v).

  Args:
    student_logp: [..., V], log p.
    teacher_logp: [..., V], log q.

  Returns:
    [...], nats, >= 0.
  """
  teacher = jnp.exp(teacher_logp)
  return jnp.sum(teacher * (teacher_logp - student_logp), axis=-1)


def reverse_kl(student_logp: jax.Array, teacher_logp: jax.Array) -> jax.Array:
  """KL(student || teacher) = sum_v p_v (log p_v - log q_v).

  The objective of arXiv 2606.26091 (sec. 2). The gradient goes through both
  appearances of p.

  Args:
    student_logp: [..., V], log p.
    teacher_logp: [..., V], log q.

  Returns:
    [...], nats, >= 0.
  """
  return forward_kl(teacher_logp, student_logp)


def generalised_jsd(
  student_logp: jax.Array, teacher_logp: jax.Array, *, alpha: float = 0.5
) -> jax.Array:
  """(1 - alpha) KL(p || m) + alpha KL(q || m), m = (1 - alpha) p + alpha q.

  As SDPO (arXiv 2601.20802) computes it; it goes to 0 as alpha goes to 0 or
  1, so it does not interpolate between the two KLs.

  Args:
    student_logp: [..., V], log p.
    teacher_logp: [..., V], log q.
    alpha: the teacher's share of the mixture, in (0, 1).

  Returns:
    [...], nats, >= 0.
  """
  mixture_logp = jnp.logaddexp(
    student_logp + jnp.log1p(-alpha), teacher_logp + jnp.log(alpha)
  )
  return (1 - alpha) * forward_kl(mixture_logp, student_logp) + (
    alpha * forward_kl(mixture_logp, teacher_logp)
  )


def sampled_reverse_kl(
  student_logp: jax.Array, teacher_logp: jax.Array
) -> jax.Array:
  """The policy-gradient form of the reverse KL, from taken tokens only.

  sg(log p - log q) * log p: its gradient is that of KL(student || teacher) in
  expectation over tokens the student samples; its value is not a divergence.

  Args:
    student_logp: [...], log p of the taken token.
    teacher_logp: [...], log q of the taken token.

  Returns:
    [...].
  """
  return jax.lax.stop_gradient(student_logp - teacher_logp) * student_logp


DIVERGENCES: dict[str, Callable[..., jax.Array]] = {
  'forward_kl': forward_kl,
  'reverse_kl': reverse_kl,
  'jsd': generalised_jsd,
}


def divergence(objective: str, jsd_alpha: float) -> Callable[..., jax.Array]:
  """Looks an objective up.

  Args:
    objective: a key of `DIVERGENCES`.
    jsd_alpha: used by `jsd` alone.

  Returns:
    A function of student and teacher log-probabilities.

  Raises:
    ValueError: for an unknown objective, or a share outside (0, 1).
  """
  if objective not in DIVERGENCES:
    raise ValueError(
      f'objective={objective!r} is not one of {sorted(DIVERGENCES)}.'
    )
  if objective == 'jsd':
    if not 0 < jsd_alpha < 1:
      raise ValueError(
        f'jsd_alpha={jsd_alpha} must be in (0, 1); for a plain KL choose '
        "objective='forward_kl' or 'reverse_kl'."
      )
    return functools.partial(generalised_jsd, alpha=jsd_alpha)
  return DIVERGENCES[objective]
