"""Divergences between the student's and the teacher's next-token law.

Each takes log-probabilities over the vocabulary, or over the coarser support
that `sdjax.objectives.support` makes of it, and gives nats per token. The
teacher's are constants: callers stop their gradient where they are made.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

NO_CLIP = float('inf')


def _kl_terms(logp: jax.Array, other_logp: jax.Array) -> jax.Array:
  """p_v (log p_v - log o_v)."""
  return jnp.exp(logp) * (logp - other_logp)


def _clipped_sum(terms: jax.Array, clip: float) -> jax.Array:
  """sum_v min(term_v, clip)."""
  return jnp.sum(terms if clip == NO_CLIP else jnp.minimum(terms, clip), -1)


def forward_kl(
  student_logp: jax.Array, teacher_logp: jax.Array, *, clip: float = NO_CLIP
) -> jax.Array:
  """KL(teacher || student) = sum_v q_v (log q_v - log p_v).

  Args:
    student_logp: [..., V], log p.
    teacher_logp: [..., V], log q.
    clip: no term of the sum exceeds this many nats, so that a few tokens the
      student all but excludes cannot outweigh the rest (OPSD, arXiv
      2601.18734); a clipped term has no gradient.

  Returns:
    [...], nats, >= 0 unless clipped.
  """
  return _clipped_sum(_kl_terms(teacher_logp, student_logp), clip)


def reverse_kl(
  student_logp: jax.Array, teacher_logp: jax.Array, *, clip: float = NO_CLIP
) -> jax.Array:
  """KL(student || teacher) = sum_v p_v (log p_v - log q_v).

  The objective of arXiv 2606.26091 (sec. 2). The gradient goes through both
  appearances of p.

  Args:
    student_logp: [..., V], log p.
    teacher_logp: [..., V], log q.
    clip: as in `forward_kl`.

  Returns:
    [...], nats, >= 0 unless clipped.
  """
  return _clipped_sum(_kl_terms(student_logp, teacher_logp), clip)


def generalised_jsd(
  student_logp: jax.Array,
  teacher_logp: jax.Array,
  *,
  alpha: float = 0.5,
  normalised: bool = False,
  clip: float = NO_CLIP,
) -> jax.Array:
  """(1 - alpha) KL(p || m) + alpha KL(q || m), m = (1 - alpha) p + alpha q.

  As SDPO (arXiv 2601.20802) computes it. It goes to 0 as alpha goes to 0 or
  1, so it does not interpolate between the two KLs and its scale depends on
  alpha. Divided by alpha (1 - alpha) it does: it goes to `forward_kl` as
  alpha goes to 0 and to `reverse_kl` as it goes to 1.

  Args:
    student_logp: [..., V], log p.
    teacher_logp: [..., V], log q.
    alpha: the teacher's share of the mixture, in (0, 1).
    normalised: divide by alpha (1 - alpha) (ours).
    clip: no token of the vocabulary adds more than this many nats to the
      mixture of the two KLs (before `normalised` divides it), as the codes of
      OPSD, RLCSD and d-OPSD have it. Where p is above m, q is below it:
      clipping each KL by itself would cut the positive parts, keep the
      negative ones, and leave most sums below 0.

  Returns:
    [...], nats, >= 0 unless clipped.
  """
  mixture_logp = jnp.logaddexp(
    student_logp + jnp.log1p(-alpha), teacher_logp + jnp.log(alpha)
  )
  terms = (1 - alpha) * _kl_terms(student_logp, mixture_logp) + (
    alpha * _kl_terms(teacher_logp, mixture_logp)
  )
  value = _clipped_sum(terms, clip)
  return value / (alpha * (1 - alpha)) if normalised else value


def cross_entropy(
  student_logp: jax.Array, teacher_logp: jax.Array, *, clip: float = NO_CLIP
) -> jax.Array:
  """H(teacher, student) = -sum_v q_v log p_v, the cost of DistIL.

  Its gradient is that of `forward_kl`; its value, which DistIL's credit for
  later tokens adds up, is larger by the teacher's entropy.

  Args:
    student_logp: [..., V], log p.
    teacher_logp: [..., V], log q.
    clip: no term exceeds this many nats.

  Returns:
    [...], nats, >= 0.

  Source: DistIL, arXiv 2606.05152.
  """
  return _clipped_sum(-jnp.exp(teacher_logp) * student_logp, clip)


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
  'cross_entropy': cross_entropy,
}


def divergence(
  objective: str,
  jsd_alpha: float = 0.5,
  jsd_normalised: bool = False,
  clip: float = NO_CLIP,
) -> Callable[..., jax.Array]:
  """Looks an objective up.

  Args:
    objective: a key of `DIVERGENCES`.
    jsd_alpha: used by `jsd` alone.
    jsd_normalised: used by `jsd` alone.
    clip: see `forward_kl`.

  Returns:
    A function of student and teacher log-probabilities.

  Raises:
    ValueError: for an unknown objective, a share outside (0, 1) or a clip
      that is not above 0.
  """
  if objective not in DIVERGENCES:
    raise ValueError(
      f'objective={objective!r} is not one of {sorted(DIVERGENCES)}.'
    )
  if not clip > 0:
    raise ValueError(f'clip={clip} must be above 0; inf clips nothing.')
  if objective == 'jsd':
    if not 0 < jsd_alpha < 1:
      raise ValueError(
        f'jsd_alpha={jsd_alpha} must be in (0, 1); for a plain KL choose '
        "objective='forward_kl' or 'reverse_kl'."
      )
    return functools.partial(
      generalised_jsd, alpha=jsd_alpha, normalised=jsd_normalised, clip=clip
    )
  return functools.partial(DIVERGENCES[objective], clip=clip)
