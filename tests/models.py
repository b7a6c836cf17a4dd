"""A tiny decoder, models without one, and a walker of jaxprs, for tests.

The decoder's weights are drawn wide: with weights close to 0 every
next-token distribution is uniform and a broken attention would go unseen.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from sdjax.models.cache import KV
from sdjax.models.transformer import (
  TransformerConfig,
  init_params,
  make_apply_fn,
)
from sdjax.objectives.reduce import token_weights
from sdjax.steps import mix
from sdjax.steps.rollout import rollout_step
from sdjax.steps.student import Shared
from sdjax.types import (
  Prompts,
  Rewards,
  Rollout,
  TeacherContexts,
  length_mask,
)

VOCAB = 23


@functools.cache
def config(**changes: Any) -> TransformerConfig:
  """The tiny decoder's sizes, with changes."""
  sizes = {
    'vocab_size': VOCAB,
    'width': 16,
    'num_layers': 2,
    'num_heads': 4,
    'num_kv_heads': 2,
    'head_dim': 8,
    'ffn_width': 24,
  }
  return TransformerConfig(**{**sizes, **changes})


@functools.cache
def model(seed: int = 0, **changes: Any) -> tuple[Callable[..., Any], Any]:
  """`apply_fn` and weights of the tiny decoder, with changed sizes."""
  cfg = config(**changes)
  shapes = jax.eval_shape(lambda k: init_params(cfg, k), jax.random.key(0))
  draw = np.random.default_rng(seed).standard_normal

  def weight(path, leaf):
    name = path[-1].key
    x = draw(leaf.shape)
    if name == 'scale':
      x = 1 + 0.3 * x
    elif name == 'kernel':
      x = 1.2 * x / np.sqrt(leaf.shape[-2])
    else:
      x = 0.6 * x
    return jnp.asarray(x, leaf.dtype)

  return make_apply_fn(cfg), jax.tree_util.tree_map_with_path(weight, shapes)


def left_padded(
  rows: Sequence[Sequence[int]], width: int, pad: int = 0
) -> tuple[jax.Array, jax.Array]:
  """int32 [rows, width] with the rows at the right, and their lengths."""
  ids = np.full((len(rows), width), pad, np.int32)
  for i, row in enumerate(rows):
    ids[i, width - len(row) :] = row
  return jnp.asarray(ids), jnp.asarray([len(r) for r in rows], jnp.int32)


def random_rows(lengths: Sequence[int], seed: int) -> list[list[int]]:
  """Token sequences of the given lengths."""
  rng = np.random.default_rng(seed)
  return [rng.integers(0, VOCAB, n).tolist() for n in lengths]


def make_prompts(
  lengths: Sequence[int], width: int, seed: int = 0, pad: int = 0
) -> Prompts:
  """Prompts of the given lengths, with ids 10, 11, ..."""
  ids, length = left_padded(random_rows(lengths, seed), width, pad)
  return Prompts(
    ids=ids, length=length, question_id=jnp.arange(len(lengths)) + 10
  )


def chain(
  rows: Any, seen: Callable[[], None] | None = None
) -> tuple[Callable[..., Any], jax.Array]:
  """A model whose next token depends on the last one only.

  Args:
    rows: [V, V], row i is the distribution of the token after token i; it
      may be unnormalised.
    seen: called on the host once for each run of `hidden`.

  Returns:
    `apply_fn` and its weights: the log of the rows.
  """

  def apply_fn(params, x, *, method, prefix=None, suffix=None, pad_QG=None):
    del prefix, suffix, pad_QG
    if method == 'head':
      return x @ params
    if seen is not None:
      jax.debug.callback(seen)
    empty = jnp.zeros((1, *x.shape, 1, 1))
    return jax.nn.one_hot(x, params.shape[0]), KV(k=empty, v=empty)

  # exp(-40) stands for 0: -inf * 0 in the product with a one-hot is NaN.
  return apply_fn, jnp.maximum(jnp.log(jnp.asarray(rows, jnp.float32)), -40.0)


@functools.cache
def bags(size: int = VOCAB, seed: int = 0) -> tuple[Callable[..., Any], Any]:
  """A model whose next token depends on the last one and on its context.

  It is a table: a token's logits are the sum of a row for the token before it
  and of one for each token the context holds. So a demonstration in the
  context matters, and a step compiles in a moment.

  Args:
    size: V, tokens.
    seed: of the weights.

  Returns:
    `apply_fn` and its weights, [2 V, V].
  """

  def apply_fn(
    params, x, *, method, prefix=None, suffix=None, pad_QG=None
  ) -> Any:
    if method == 'head':
      return x @ params
    one = jax.nn.one_hot(x, size)
    if prefix is None:
      real = jnp.arange(x.shape[-1]) >= jnp.asarray(pad_QG)[..., None]
      bag = (one * real[..., None]).sum(axis=-2, keepdims=True)
      kv = KV(k=bag[None, ..., None], v=bag[None, ..., None])
    else:
      bag = prefix.kv.k[0, ..., 0]
      index = prefix.index
      if index is None:
        index = jnp.zeros(x.shape[:2], int)
      bag = jnp.take_along_axis(bag, index[..., None, None], axis=1)
      kv = prefix.kv
      if suffix is not None:
        # Of the new tokens, by their shape alone: only the last one counts.
        kv = KV(k=one[None, ..., None], v=one[None, ..., None])
    out = jnp.broadcast_to(bag, one.shape)
    return jnp.concatenate([one, out], axis=-1), kv

  weights = 0.7 * np.random.default_rng(seed).standard_normal((2 * size, size))
  # NumPy: made and cached while something is traced, a JAX array would be of
  # that trace.
  return apply_fn, weights.astype(np.float32)


@functools.cache
def batch() -> tuple[Prompts, Rollout, mix.Evidence]:
  """4 questions with 3 rollouts of the tiny decoder, and evidence for both.

  Each question has 2 teacher contexts and each rollout 2 teachers, or fewer:
  rollout (0, 1) has one, rollouts (1, 0) and (3, 2) have none.
  """
  apply_fn, params = model()
  prompts = make_prompts([2, 6, 3, 5], 6)
  rollout = jax.jit(
    functools.partial(
      rollout_step, apply_fn, num_samples=3, max_new_tokens=5, eos_ids=(1, 5, 8)
    )
  )(params, prompts, jax.random.key(0))
  rng = np.random.default_rng(1)
  lengths = rng.integers(4, 10, 8)
  ids, length = left_padded(random_rows(lengths.tolist(), 2), 9)
  mask = np.ones((4, 3, 2), bool)
  mask[0, 1, 1] = mask[1, 0] = mask[3, 2] = False
  # The reward is drawn first: the recorded numbers depend on the order.
  rewards = Rewards(reward=jnp.asarray(rng.random((4, 3)), jnp.float32))
  contexts = TeacherContexts(
    context_ids=ids.reshape(4, 2, 9),
    context_length=length.reshape(4, 2),
    context_index=jnp.asarray(rng.integers(0, 2, (4, 3, 2)), jnp.int32),
    context_mask=jnp.asarray(mask),
  )
  return prompts, rollout, mix.Evidence(sd=contexts, rl=rewards)


def signal_then_loss(
  module: Any,
  apply_fn: Callable[..., Any],
  params: Any,
  teacher_params: Any,
  ref_params: Any,
  data: tuple[Prompts, Rollout, Any],
  options: Any = None,
  **shared: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Loss and metrics of a whole step of `sd`, `rl` or `mix`, not the update.

  Args:
    module: the step's.
    apply_fn: the model.
    params: the student's weights.
    teacher_params: the teacher's, or None.
    ref_params: the reference's, or None.
    data: prompts, rollout, and the step's evidence or that of both.
    options: of the step; None: its defaults.
    **shared: of all methods.

  Returns:
    As of `loss`.
  """
  prompts, rollout, evidence = data
  if isinstance(evidence, mix.Evidence) and module is not mix:
    evidence = getattr(evidence, module.__name__.rpartition('.')[2])
  options, together = options or module.Options(), Shared(**shared)
  models = (apply_fn, params, teacher_params, ref_params)
  signal = module.signal_step(
    *models, prompts, rollout, evidence, options, together
  )
  return module.loss(
    *models,
    prompts,
    rollout,
    signal,
    weights(rollout, signal.sample_mask),
    options,
    together,
  )


@contextlib.contextmanager
def one_device() -> Iterator[None]:
  """Gives every mesh that is made one of the session's devices."""
  alone = jax.devices()[:1]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'devices', lambda: alone)
    yield


def weights(rollout: Rollout, sample_mask: Any) -> jax.Array:
  """`token_mean` weights of a rollout."""
  mask = length_mask(rollout.length, rollout.ids.shape[-1])
  return token_weights(mask, sample_mask, 'token_mean')


def equations(jaxpr: Any) -> Iterator[Any]:
  """Every equation of a jaxpr, those of inner jaxprs included."""
  if isinstance(jaxpr, core.ClosedJaxpr):
    jaxpr = jaxpr.jaxpr
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
    ):
      if isinstance(inner, core.Jaxpr | core.ClosedJaxpr):
        yield from equations(inner)


def largest_logits(jaxpr: Any, vocab: int) -> tuple[int, int]:
  """Sizes of the largest float array, and of the largest [.., .., .., V]."""
  sizes, logits = [0], [0]
  for equation in equations(jaxpr):
    for variable in equation.outvars:
      aval = variable.aval
      if jnp.issubdtype(aval.dtype, jnp.floating):
        sizes.append(aval.size)
        if len(aval.shape) > 2 and vocab in aval.shape:
          logits.append(aval.size)
  return max(sizes), max(logits)


def assert_close(tree: Any, other: Any, tolerance: float = 1e-5) -> None:
  """Compares trees: leaf errors relative to the leaf's largest entry.

  Entries below 0.03 are noise of larger terms: their bound is that of 0.03.
  """
  leaves, treedef = jax.tree.flatten(tree)
  others, other_treedef = jax.tree.flatten(other)
  assert treedef == other_treedef
  assert leaves
  for a, b in zip(leaves, others, strict=True):
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    assert a.shape == b.shape
    bound = tolerance * max(0.03, np.abs(b).max(initial=0))
    np.testing.assert_allclose(a, b, rtol=0, atol=bound)
