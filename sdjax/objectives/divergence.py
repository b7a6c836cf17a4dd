"""Divergences between the student's and the teacher's next-token distribution.

Each takes log-probabilities over the vocabulary, or over the coarser support
that `sdjax.objectives.support` makes of it, and gives nats per token. The
teacher's are constants: callers stop their gradient where they are made.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import Gt, Lt
from jaxtyping import Float

from sdjax.options import Option
from sdjax.types import Array

Clip = Annotated[float, Gt(0)]
"""Nats that no term of a sum over the vocabulary exceeds; inf for no clip.

So a few tokens that the student all but excludes cannot outweigh the rest
(OPSD, arXiv 2601.18734). A clipped term has no gradient.
"""


class Divergence(Option):
  """What the student minimises at each token.

  Attributes:
    compares: whether it compares next-token distributions.
    clip: nats that no term exceeds.
  """

  compares: ClassVar[bool] = True
  clip: float = math.inf

  def __call__(
    self, student_logp: Float[Array, '*B V'], teacher_logp: Float[Array, '*B V']
  ) -> Float[Array, '*B']:
    """Returns nats, from log p of the student and log q of the teacher."""
    raise NotImplementedError

  def words(self) -> str:
    """Says what it is and its clip, for a person."""
    return super().words() + _clip_words(self.clip)


def _clip_words(clip: float) -> str:
  return '' if clip == math.inf else f', no token above {clip:g} nats'


def _clipped_sum(terms: jax.Array, clip: float) -> jax.Array:
  """sum_v min(term_v, clip)."""
  return jnp.sum(terms if clip == math.inf else jnp.minimum(terms, clip), -1)


def kl_terms(logp: jax.Array, other_logp: jax.Array) -> jax.Array:
  """p_v (log p_v - log o_v)."""
  return jnp.exp(logp) * (logp - other_logp)


def mixture(
  student_logp: jax.Array, teacher_logp: jax.Array, share: float
) -> jax.Array:
  """Log of (1 - share) p + share q."""
  return jnp.logaddexp(
    student_logp + jnp.log1p(-share), teacher_logp + jnp.log(share)
  )


@dataclass(frozen=True)
class ReverseKL(Divergence, name='reverse_kl'):
  """KL(student || teacher) = sum_v p_v (log p_v - log q_v).

  The objective of arXiv 2606.26091 (sec. 2). The gradient goes through both
  appearances of p. At least 0 unless clipped.
  """

  clip: Clip = math.inf
  said = 'KL(student || teacher)'

  def __call__(self, student_logp, teacher_logp):
    """Returns nats [...]."""
    return _clipped_sum(kl_terms(student_logp, teacher_logp), self.clip)


@dataclass(frozen=True)
class ForwardKL(Divergence, name='forward_kl'):
  """KL(teacher || student) = sum_v q_v (log q_v - log p_v).

  At least 0 unless clipped.
  """

  clip: Clip = math.inf
  said = 'KL(teacher || student)'

  def __call__(self, student_logp, teacher_logp):
    """Returns nats [...]."""
    return _clipped_sum(kl_terms(teacher_logp, student_logp), self.clip)


@dataclass(frozen=True)
class JSD(Divergence, name='jsd'):
  """(1 - a) KL(p || m) + a KL(q || m), m = (1 - a) p + a q.

  As SDPO (arXiv 2601.20802) computes it. It goes to 0 as alpha goes to 0 or
  1, so it does not interpolate between the two KLs and its scale depends on
  alpha. Divided by alpha (1 - alpha) it does: it goes to the forward KL as
  alpha goes to 0 and to the reverse KL as it goes to 1.

  Attributes:
    alpha: a, the teacher's share of the mixture.
    normalised: divide by alpha (1 - alpha) (ours).
    clip: no token of the vocabulary adds more than this many nats to the
      mixture of the two KLs (before `normalised` divides it), as the codes of
      OPSD, RLCSD and d-OPSD have it. Where p is above m, q is below it:
      clipping each KL by itself would cut the positive parts, keep the
      negative ones, and leave most sums below 0.
  """

  alpha: Annotated[float, Gt(0), Lt(1)] = 0.5
  normalised: bool = False
  clip: Clip = math.inf

  def __call__(self, student_logp, teacher_logp):
    """Returns nats [...], at least 0 unless clipped."""
    share = self.alpha
    mixture_logp = mixture(student_logp, teacher_logp, share)
    terms = (1 - share) * kl_terms(student_logp, mixture_logp) + (
      share * kl_terms(teacher_logp, mixture_logp)
    )
    value = _clipped_sum(terms, self.clip)
    return value / (share * (1 - share)) if self.normalised else value

  def words(self) -> str:
    """Says what it is, for a person."""
    scaled = ', normalised' if self.normalised else ''
    return (
      f'JSD(student, teacher; alpha={self.alpha:g}{scaled})'
      f'{_clip_words(self.clip)}'
    )


@dataclass(frozen=True)
class SkewedKL(Divergence, name='skewed_kl'):
  """KL(q || m) = sum_v q_v (log q_v - log m_v), m = (1 - a) p + a q.

  The forward KL, with some of the teacher mixed into the student's side. In
  0..-log a, so a token that the student excludes costs no more than -q log a
  and needs no clip. With w_v = (1 - a) p_v / m_v, the student's part of the
  mixture at v, the gradient in the student's logits is
  p_v sum_u q_u w_u - q_v w_v: that of the forward KL, p - q, with each
  token's pull held back to w, which fades where p is far below q. It goes to
  the forward KL as a goes to 0 and to 0 as a goes to 1.

  Source: DistiLLM, arXiv 2402.03898.

  Attributes:
    alpha: a, the teacher's share of the mixture.
  """

  alpha: Annotated[float, Gt(0), Lt(1)] = 0.1

  def __call__(self, student_logp, teacher_logp):
    """Returns nats [...], at least 0 and at most -log alpha."""
    mixture_logp = mixture(student_logp, teacher_logp, self.alpha)
    return jnp.sum(kl_terms(teacher_logp, mixture_logp), axis=-1)

  def words(self) -> str:
    """Says what it is, for a person."""
    a, rest = f'{self.alpha:g}', f'{1 - self.alpha:g}'
    return f'KL(teacher || {rest} student + {a} teacher)'


@dataclass(frozen=True)
class CrossEntropy(Divergence, name='cross_entropy'):
  """H(teacher, student) = -sum_v q_v log p_v, the cost of DistIL.

  Its gradient is that of the forward KL; its value, which DistIL's credit for
  later tokens adds up, is larger by the teacher's entropy.

  Source: DistIL, arXiv 2606.05152.
  """

  clip: Clip = math.inf
  said = '-sum teacher log student'

  def __call__(self, student_logp, teacher_logp):
    """Returns nats [...], at least 0."""
    return _clipped_sum(-jnp.exp(teacher_logp) * student_logp, self.clip)


@dataclass(frozen=True)
class ScoreWeighted(Divergence, name='score_weighted'):
  """-w_i log p(y_i): rollouts weighted by their score under the teacher.

  w is n times the softmax over the question's n counted rollouts of their
  mean log-probability under the teacher. With the aggregation `sequence_sum`
  that is -sum_i softmax_i log p(y_i). It is how summaries describe arXiv
  2606.26091, not what that minimises. No distributions are compared.
  """

  compares: ClassVar[bool] = False
  said = '-softmax(score under the teacher) log p'


def sampled_reverse_kl(
  student_logp: Float[Array, '*#B'], teacher_logp: Float[Array, '*#B']
) -> Float[Array, '*B']:
  """The policy-gradient form of the reverse KL, from taken tokens only.

  sg(log p - log q) * log p: its gradient is that of KL(student || teacher) in
  expectation over tokens the student samples; its value is not a divergence.
  """
  return jax.lax.stop_gradient(student_logp - teacher_logp) * student_logp
