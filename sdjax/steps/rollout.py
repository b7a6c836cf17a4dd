"""Sampling G completions of each question, the question read once."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sdjax import rng
from sdjax.models.cache import append, empty_suffix
from sdjax.steps.sampling import Sampling, sampling_logp
from sdjax.steps.score import log_softmax, prefill, take_token
from sdjax.types import ApplyFn, Params, Prompts, Rollout


def rollout_step(
  apply_fn: ApplyFn,
  params: Params,
  prompts: Prompts,
  key: jax.Array,
  *,
  num_samples: int,
  max_new_tokens: int,
  eos_ids: Sequence[int],
  sampling: Sampling = Sampling(),  # noqa: B008
) -> Rollout:
  """Samples G completions of at most T tokens until all have ended.

  A token's draw depends on the step's PRNG key, on the question's id, the
  sample's index and the token's column, and on nothing else. Those of
  `eos_ids` end a completion; padding columns hold token 0.
  """
  prefix, last_QED = prefill(
    apply_fn, params, prompts.ids[:, None], prompts.length[:, None]
  )
  keys_QG = rng.sample_keys(key, prompts.question_id, num_samples)
  eos = jnp.asarray(list(eos_ids), jnp.int32)
  num_q = prompts.ids.shape[0]
  shape = (num_q, num_samples, max_new_tokens)
  blank = Rollout(
    ids=jnp.zeros(shape, jnp.int32),
    length=jnp.zeros(shape[:2], jnp.int32),
    behavior_logp=jnp.zeros(shape, jnp.float32),
    entropy=jnp.zeros(shape, jnp.float32),
    finished=jnp.zeros(shape[:2], bool),
  )

  def draw(rollout: Rollout, hidden_QGD: jax.Array, t: Any) -> Rollout:
    logits = apply_fn(params, hidden_QGD, method='head')
    own_logp = log_softmax(logits)
    logp = sampling_logp(logits, sampling)
    token_keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(
      keys_QG, t
    )
    ids = jax.vmap(jax.vmap(jax.random.categorical))(token_keys, logp)
    live = ~rollout.finished

    def write(old, new):
      column = jnp.where(live, new, 0)[..., None].astype(old.dtype)
      return jax.lax.dynamic_update_slice_in_dim(old, column, t, axis=2)

    return Rollout(
      ids=write(rollout.ids, ids),
      length=rollout.length + live,
      behavior_logp=write(rollout.behavior_logp, take_token(logp, ids)),
      entropy=write(
        rollout.entropy, -jnp.sum(jnp.exp(own_logp) * own_logp, axis=-1)
      ),
      finished=rollout.finished | jnp.isin(ids, eos),
    )

  size = last_QED.shape[-1]
  first_QGD = jnp.broadcast_to(last_QED, (num_q, num_samples, size))
  suffix = empty_suffix(prefix, num_samples, max_new_tokens)
  carry = (1, draw(blank, first_QGD, 0), suffix)

  def unfinished(carry):
    t, rollout, _ = carry
    return (t < max_new_tokens) & ~jnp.all(rollout.finished)

  def decode(carry):
    t, rollout, suffix = carry
    last_ids = jax.lax.dynamic_slice_in_dim(rollout.ids, t - 1, 1, axis=2)
    hidden, kv = apply_fn(
      params, last_ids, prefix=prefix, suffix=suffix, method='hidden'
    )
    return t + 1, draw(rollout, hidden[:, :, 0], t), append(suffix, kv)

  return jax.lax.while_loop(unfinished, decode, carry)[1]
