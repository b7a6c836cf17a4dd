"""A batch of token distributions as arguments of the steps.

The model is a table of logits, so that a step gives the gradient in the logits
themselves. Question b is row b of the batch, with one rollout; its advantage,
which needs the group, is made first and handed to the step as its reward.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.models.cache import KV
from sdjax.objectives.advantages import GRPO, Advantage, DrGRPO, RewardItself
from sdjax.objectives.policy_loss import PolicyLoss
from sdjax.objectives.reduce import token_weights
from sdjax.steps import mix, rl, sd, update
from sdjax.steps.score import student_hidden, token_logp
from sdjax.steps.student import Shared, Signal, counted_tokens
from sdjax.types import Prompts, Rewards, Rollout

Arrays = Mapping[str, Any]
Case = Mapping[str, Any]
Found = dict[str, Any]


def rewarded(policy_loss: PolicyLoss) -> rl.Options:
  """Options of a step whose reward is the advantage."""
  return rl.Options(advantage=RewardItself(), policy_loss=policy_loss)


def apply_fn(params, x, *, method, prefix=None, pad_QG=None):
  """A model whose hidden states, which are its logits, are its parameters.

  They are [B, E, T, V]: what follows context e of question b.
  """
  del pad_QG
  if method == 'head':
    return x
  nothing = jnp.zeros((1, *x.shape, 1, 1))
  kv = KV(k=nothing, v=nothing)
  if prefix is None:  # the contexts are one token wide
    return jnp.broadcast_to(
      params[:, :, :1], (*x.shape[:2], 1, params.shape[-1])
    ), kv
  index = prefix.index
  if index is None:
    index = jnp.zeros(x.shape[:2], int)
  later = jnp.take_along_axis(params[:, :, 1:], index[..., None, None], axis=1)
  return later, kv


def prompts_of(num_b: int) -> Prompts:
  return Prompts(
    ids=jnp.zeros((num_b, 1), jnp.int32),
    length=jnp.ones(num_b, jnp.int32),
    question_id=jnp.arange(num_b),
  )


def column(x: Any) -> jax.Array:
  """[B, ...] to [B, 1, ...]: one rollout a question."""
  return jnp.asarray(x)[:, None]


def logits_of(logp: Any, ids: Any, size: int) -> np.ndarray:
  """Logits [..., T, V] under which the tokens have the log-probabilities."""
  logp = np.asarray(logp)
  other = np.log(-np.expm1(logp)) - np.log(size - 1)
  taken = np.eye(size, dtype=bool)[np.broadcast_to(ids, logp.shape)]
  return np.where(taken, logp[..., None], other[..., None])


@dataclass(frozen=True)
class Problem:
  """A batch as arguments of the steps; the teacher has right and wrong hints.

  Attributes:
    data: the arrays of the batch.
  """

  data: Arrays

  @property
  def mask(self) -> np.ndarray:
    return np.asarray(self.data['mask']) > 0

  @property
  def student(self) -> jax.Array:
    return column(self.data['logits'])

  @property
  def reference(self) -> jax.Array:
    return column(self.data['ref_logits'])

  @property
  def num_wrong(self) -> int:
    return self.data['wrong_logp'].shape[1]

  @property
  def teacher(self) -> jax.Array:
    right, ids = self.data['teacher_logits'], self.data['ids']
    wrong = logits_of(self.data['wrong_logp'], ids[:, None], right.shape[-1])
    return jnp.concatenate([right[:, None], wrong], axis=1)

  @property
  def prompts(self) -> Prompts:
    return prompts_of(len(self.data['ids']))

  @property
  def rollout(self) -> Rollout:
    num_b, width = self.data['ids'].shape
    length = self.mask.sum(axis=1)
    assert (self.mask == (np.arange(width) < length[:, None])).all()
    return Rollout(
      ids=jnp.asarray(self.data['ids'], jnp.int32)[:, None],
      length=jnp.asarray(length, jnp.int32)[:, None],
      behavior_logp=column(self.data['old_logp']),
      entropy=jnp.zeros((num_b, 1, width)),
      finished=jnp.ones((num_b, 1), bool),
    )

  def evidence(self, advantage_B: Any, contrast: bool = False) -> mix.Evidence:
    """Evidence in which the reward is the advantage; with wrong hints too."""
    num_b = len(self.data['ids'])
    num_k = 1 + self.num_wrong if contrast else 1
    contexts = 1 + self.num_wrong
    mask = np.ones((num_b, 1, num_k), bool)
    if contrast:
      mask[:, 0, 1:] = np.asarray(self.data['wrong_valid']) > 0
    # What the codes that know no verifier take for right.
    correct = column(np.asarray(advantage_B) > 0)
    return mix.Evidence(
      sd=sd.Evidence(
        context_ids=jnp.zeros((num_b, contexts, 1), jnp.int32),
        context_length=jnp.ones((num_b, contexts), jnp.int32),
        context_index=jnp.broadcast_to(jnp.arange(num_k), (num_b, 1, num_k)),
        context_mask=jnp.asarray(mask),
        correct=correct,
      ),
      rl=rl.Evidence(reward=column(advantage_B), correct=correct),
    )

  def current_logp(self) -> jax.Array:
    """[B, 1, T], of the taken tokens under the student as it is now."""
    ids = self.rollout.ids
    hidden = student_hidden(apply_fn, self.student, self.prompts, ids)
    return token_logp(apply_fn, self.student, hidden, ids)

  def signal(
    self,
    module: Any,
    options: Any,
    shared: Shared = Shared(),  # noqa: B008
    advantage_B: Any = None,
    *,
    rollout: Rollout | None = None,
    weight: float | None = None,
    contrast: bool = False,
  ) -> Any:
    """What a step's `signal_step` makes of the batch."""
    num_b = len(self.data['ids'])
    if advantage_B is None:
      advantage_B = np.zeros(num_b)
    evidence: Any = self.evidence(advantage_B, contrast)
    if weight is not None:
      evidence = replace(evidence, weight=jnp.full(num_b, weight, float))
    if module is not mix:
      evidence = evidence.sd if module is sd else evidence.rl
    step = functools.partial(
      module.signal_step, apply_fn, options=options, shared=shared
    )
    return jax.jit(step)(
      self.student,
      self.teacher,
      self.reference,
      self.prompts,
      rollout or self.rollout,
      evidence,
    )

  def run(
    self,
    module: Any,
    signal: Signal,
    options: Any,
    shared: Shared = Shared(),  # noqa: B008
    *,
    aggregation: str = 'token_mean',
    row_scale: Any = 1.0,
    horizon: int | None = None,
    weighted: bool = True,
  ) -> Found:
    """Loss, its gradient in the logits, and the loss of each token.

    Args:
      module: the step whose loss it is.
      signal: its target.
      options: of the step.
      shared: of all steps.
      aggregation: see `token_weights`.
      row_scale: [B] or a number, what the reference's mean differs by.
      horizon: see `token_weights`.
      weighted: whether the weights of tokens in the signal are part of the
        loss of each token, and not of the mean.
    """
    scale = jnp.broadcast_to(
      jnp.reshape(jnp.asarray(row_scale, float), (-1, 1, 1)),
      self.rollout.ids.shape,
    )
    both = signal.weighted(scale)
    if getattr(signal, 'taught', None) is not None:
      both = replace(both, taught=both.taught.weighted(scale))
    loss_fn = functools.partial(
      module.loss, apply_fn, options=options, shared=shared
    )
    batch = (self.prompts, self.rollout)
    step = functools.partial(
      update.gradient,
      loss_fn,
      options=update.Options(aggregation=aggregation, horizon=horizon),
    )
    grad, metrics = jax.jit(step)(
      self.student, self.teacher, self.reference, *batch, both
    )
    # The loss is linear in the weights of tokens: their slopes are its terms.
    plain = signal if weighted else replace(signal, weight=None)
    weight = token_weights(
      counted_tokens(self.rollout, signal), signal.sample_mask, 'token_mean'
    )

    def total(weight):
      return loss_fn(
        self.student, self.teacher, self.reference, *batch, plain, weight
      )[0]

    each = jax.jit(jax.grad(total))(weight)
    assert metrics['loss'].dtype == grad.dtype == np.float64
    return {
      'loss': metrics['loss'],
      'grad': grad[:, 0],
      'per_token': jnp.where(self.mask, each[:, 0], 0),
    }


def advantages(data: Arrays, advantage: Advantage) -> np.ndarray:
  """[B], group by group, whatever their sizes."""
  out = np.zeros(len(data['reward']))
  for group in np.unique(data['group']):
    at = data['group'] == group
    reward = jnp.asarray(data['reward'][at])[None]
    out[at] = np.asarray(advantage(Rewards(reward)))[0]
  return out


def grpo(problem: Problem, case: Case, epsilon: float = 1e-6) -> np.ndarray:
  """[B], what verl makes of the rewards."""
  if not case['options'].get('norm_adv_by_std_in_grpo', True):
    return advantages(problem.data, DrGRPO())
  return advantages(problem.data, GRPO(std='sample', epsilon=epsilon))


def of_tokens(problem: Problem, advantage_B: Any) -> np.ndarray:
  """[B, T], the advantage of each token, 0 where padded."""
  return np.asarray(advantage_B)[:, None] * problem.mask
