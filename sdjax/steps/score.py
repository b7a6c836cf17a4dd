"""Scoring completions under contexts: hidden states, then chunks of logits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.models.cache import Prefix
from sdjax.types import ApplyFn, Params, Prompts


def prefill(
  apply_fn: ApplyFn,
  params: Params,
  context_ids_QEC: jax.Array,
  context_length_QE: jax.Array,
) -> tuple[Prefix, jax.Array]:
  """Runs every context once.

  Args:
    apply_fn: the model.
    params: its weights.
    context_ids_QEC: int32, left-padded.
    context_length_QE: int32, real tokens, at least 1.

  Returns:
    The contexts' keys and values, and the hidden state [Q, E, D] of each
    context's last token, which predicts the first completion token.
  """
  pad_QE = context_ids_QEC.shape[-1] - context_length_QE
  hidden_QECD, kv = apply_fn(
    params, context_ids_QEC, pad_QG=pad_QE, method='hidden'
  )
  return Prefix(kv=kv, length=context_length_QE), hidden_QECD[:, :, -1]


def completion_hidden(
  apply_fn: ApplyFn,
  params: Params,
  context_ids_QEC: jax.Array,
  context_length_QE: jax.Array,
  ids_QGT: jax.Array,
  index_QG: jax.Array | None = None,
) -> jax.Array:
  """The hidden states that predict each completion token.

  Args:
    apply_fn: the model.
    params: its weights.
    context_ids_QEC: int32, left-padded contexts.
    context_length_QE: int32, real tokens of each.
    ids_QGT: int32, right-padded completions.
    index_QG: int32, which of the E contexts each completion has; None when
      E is 1.

  Returns:
    [Q, G, T, D]: column t predicts completion token t, so column 0 is the
    context's last state.
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
  apply_fn: ApplyFn, params: Params, prompts: Prompts, ids_QGT: jax.Array
) -> jax.Array:
  """`completion_hidden` under the questions themselves (E is 1).

  Args:
    apply_fn: the model.
    params: its weights.
    prompts: Q contexts, each shared by the question's completions.
    ids_QGT: int32, right-padded completions.

  Returns:
    [Q, G, T, D]: column t predicts completion token t.
  """
  return completion_hidden(
    apply_fn, params, prompts.ids[:, None], prompts.length[:, None], ids_QGT
  )


def over_token_chunks(fn: Callable[..., Any], chunk: int, *arrays: Any) -> Any:
  """Maps a per-token function over chunks of the token axis.

  The chunks run one after another and the backward pass recomputes each, so
  whatever `fn` makes of a chunk (logits!) exists for one chunk at a time.

  Args:
    fn: takes the arrays cut to `chunk` tokens, returns a tree of arrays whose
      axis 2 is the token axis.
    chunk: tokens in a chunk; the last chunk is padded with zeros.
    *arrays: trees of arrays with T as axis 2.

  Returns:
    What `fn` would return on the whole arrays.
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
  hidden_QGTD: jax.Array,
  ids_QGT: jax.Array,
  *,
  temperature: float = 1.0,
  chunk: int = 16,
) -> jax.Array:
  """Log-probabilities of the taken tokens.

  Args:
    apply_fn: the model.
    params: its weights (the head is what is used).
    hidden_QGTD: as `completion_hidden` gives them.
    ids_QGT: int32, the tokens.
    temperature: divides the logits, > 0.
    chunk: tokens whose logits exist at once.

  Returns:
    float32 [Q, G, T], nats; meaningless where padded.
  """

  def part(hidden, ids):
    logits = apply_fn(params, hidden, method='head')
    return take_token(log_softmax(logits, temperature), ids)

  return over_token_chunks(part, chunk, hidden_QGTD, ids_QGT)
