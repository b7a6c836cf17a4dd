"""Scoring completions under contexts: hidden states, then chunks of logits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from sdjax.models.cache import Prefix
from sdjax.types import ApplyFn, Array, Params, Prompts


def prefill(
  apply_fn: ApplyFn,
  params: Params,
  context_ids_QEC: Int[Array, 'Q E C'],
  context_length_QE: Int[Array, 'Q E'],
) -> tuple[Prefix, jax.Array]:
  """Runs every context once, left-padded, of at least one real token.

  Returns their keys and values, and the hidden state [Q, E, D] of each one's
  last token, which predicts the first completion token.
  """
  pad_QE = context_ids_QEC.shape[-1] - context_length_QE
  hidden_QECD, kv = apply_fn(
    params, context_ids_QEC, pad_QG=pad_QE, method='hidden'
  )
  return Prefix(kv=kv, length=context_length_QE), hidden_QECD[:, :, -1]


def completion_hidden(
  apply_fn: ApplyFn,
  params: Params,
  context_ids_QEC: Int[Array, 'Q E C'],
  context_length_QE: Int[Array, 'Q E'],
  ids_QGT: Int[Array, 'Q G T'],
  index_QG: Int[Array, 'Q G'] | None = None,
) -> Float[Array, 'Q G T D']:
  """The hidden states that predict each completion token.

  Column t predicts completion token t, so column 0 is the context's last
  state. Contexts are left-padded, completions right-padded; `index_QG` says
  which of the E contexts each completion has, None when E is 1.
  """
  if index_QG is None and context_ids_QEC.shape[1] != 1:
    raise ValueError(
      f'{context_ids_QEC.shape[1]} contexts a question but no index_QG: say '
      'which context each completion has, or pass one context (E = 1).'
    )
  prefix, last_QED = prefill(
    apply_fn, params, context_ids_QEC, context_length_QE
  )
  num_q, num_g, width = ids_QGT.shape
  if index_QG is None:
    first_QGD = jnp.broadcast_to(last_QED, (num_q, num_g, last_QED.shape[-1]))
  else:
    first_QGD = jnp.take_along_axis(last_QED, index_QG[..., None], axis=1)
    prefix = replace(prefix, index=index_QG)
  if width == 1:
    return first_QGD[:, :, None]
  rest_QGTD, _ = apply_fn(
    params, ids_QGT[..., :-1], prefix=prefix, method='hidden'
  )
  return jnp.concatenate([first_QGD[:, :, None], rest_QGTD], axis=2)


def student_hidden(
  apply_fn: ApplyFn,
  params: Params,
  prompts: Prompts,
  ids_QGT: Int[Array, 'Q G T'],
) -> Float[Array, 'Q G T D']:
  """`completion_hidden` under the questions themselves (E is 1)."""
  return completion_hidden(
    apply_fn, params, prompts.ids[:, None], prompts.length[:, None], ids_QGT
  )


def over_token_chunks(fn: Callable[..., Any], chunk: int, *arrays: Any) -> Any:
  """Maps a per-token function over chunks of the token axis.

  The chunks run one after another and the backward pass recomputes each, so
  whatever `fn` makes of a chunk (logits!) exists for one chunk at a time. The
  arrays, and those of the tree that `fn` returns, have the token axis as
  axis 2; the last chunk is padded with zeros.
  """
  width = jax.tree.leaves(arrays)[0].shape[2]
  chunk = min(chunk, width)
  count = -(-width // chunk)

  def split(x):
    pad = [(0, 0)] * x.ndim
    pad[2] = (0, count * chunk - width)
    x = jnp.pad(x, pad)
    shape = (*x.shape[:2], count, chunk, *x.shape[3:])
    return jnp.moveaxis(x.reshape(shape), 2, 0)

  def join(x):
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], count * chunk, *x.shape[4:])[:, :, :width]

  @jax.checkpoint
  def body(_, part):
    return None, fn(*part)

  if count == 1:
    return jax.checkpoint(fn)(*arrays)
  _, out = jax.lax.scan(body, None, jax.tree.map(split, arrays))
  return jax.tree.map(join, out)


def log_softmax(logits: jax.Array, temperature: float = 1.0) -> jax.Array:
  """Log-probabilities in at least float32 of logits over a temperature."""
  wide = jnp.promote_types(logits.dtype, jnp.float32)
  return jax.nn.log_softmax(logits.astype(wide) / temperature, axis=-1)


def take_token(logp: jax.Array, ids: jax.Array) -> jax.Array:
  """Picks each token's entry of the last axis of `logp`."""
  return jnp.take_along_axis(logp, ids[..., None], axis=-1)[..., 0]


def token_logp(
  apply_fn: ApplyFn,
  params: Params,
  hidden_QGTD: Float[Array, 'Q G T D'],
  ids_QGT: Int[Array, 'Q G T'],
  *,
  temperature: float = 1.0,
  chunk: int = 16,
) -> Float[Array, 'Q G T']:
  """Log-probabilities of the taken tokens, in nats.

  From the states of `completion_hidden`; meaningless where padded.
  """

  def part(hidden, ids):
    logits = apply_fn(params, hidden, method='head')
    return take_token(log_softmax(logits, temperature), ids)

  return over_token_chunks(part, chunk, hidden_QGTD, ids_QGT)
