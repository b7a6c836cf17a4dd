"""Rewards from a model: a decoder with one number in place of a vocabulary.

Hugging Face calls it `...ForSequenceClassification` with `num_labels=1`: the
decoders of `sdjax.models.families` without `lm_head`, and `score.weight`
[1, D], whose product with the last token's hidden state is the reward.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from sdjax.data.context import encode_answered
from sdjax.data.padding import padded_batches
from sdjax.feedback.grading import group_size
from sdjax.models import hf
from sdjax.models.families import CheckpointError, Fields, find_family
from sdjax.models.sharding import replicated, shard_batch, state_sharding
from sdjax.models.tokenizer import load_tokenizer
from sdjax.models.transformer import (
  TransformerConfig,
  init_params,
  make_apply_fn,
)
from sdjax.models.weights import Safetensors, read_params
from sdjax.tasks.base import Question
from sdjax.types import ApplyFn, Array, Params

SCORE = 'score.weight'
ARCHITECTURE = 'ForSequenceClassification'


def reward_step(
  apply_fn: ApplyFn,
  params: Params,
  score_head: Float[Array, 'D'],
  ids_BT: Int[Array, 'B T'],
  length_B: Int[Array, 'B'],
) -> Float[Array, 'B']:
  """Rewards whole right-padded texts of at least one token.

  The product of the head with the hidden state of each row's last real token,
  summed in float32, of any size and sign.
  """
  # Causal: what stands behind the last real token changes nothing.
  hidden_B1TD, _ = apply_fn(params, ids_BT[:, None], method='hidden')
  last_B11 = (length_B - 1)[:, None, None]
  last_BD = jnp.take_along_axis(hidden_B1TD[:, 0], last_B11, axis=1)[:, 0]
  # No matrix product: some devices would round its factors.
  product_BD = last_BD.astype(jnp.float32) * score_head.astype(jnp.float32)
  return jnp.sum(product_BD, axis=-1)


def load_reward_config(
  checkpoint: str | Path, **numerics: str
) -> TransformerConfig:
  """Reads the sizes of a reward model's decoder, as `hf.load_config`.

  It has no head; its embedding counts as tied, so that none is looked for.

  Raises:
    CheckpointError: as `hf.load_config`, and for a model with another head.
  """
  path = hf.resolve(checkpoint)
  given = hf.raw_config(path).get('architectures')
  names = given if isinstance(given, list) else [given]
  if len(names) != 1 or not str(names[0]).endswith(ARCHITECTURE):
    raise CheckpointError(
      f'{path}: architectures is {given!r}; a reward model is one '
      f'...{ARCHITECTURE}, a decoder with {SCORE} [1, D].'
    )
  cfg = hf.load_config(path, **numerics)
  return dataclasses.replace(cfg, tie_embeddings=True)


def load_reward_params(
  checkpoint: str | Path, cfg: TransformerConfig, mesh: Any = None
) -> tuple[Params, jax.Array]:
  """Reads a reward model's decoder and its head [D], in its `param_dtype`.

  Split over the devices of a mesh; None: the default device.

  Raises:
    CheckpointError: as `hf.load_params`, and for a head that is missing,
      not finite, or gives more than one number.
  """
  path = hf.resolve(checkpoint)
  tensors = Safetensors(path)
  if SCORE not in tensors.names:
    raise CheckpointError(
      f'{path} has no {SCORE}, the head of a reward model; its tensors are '
      f'{", ".join(sorted(tensors.names)[-3:])} and others.'
    )
  shape = tensors.shape(SCORE)
  if shape != (1, cfg.width):
    raise CheckpointError(
      f'{tensors.path(SCORE)}: {SCORE} has shape {shape}; a reward model has '
      f'(1, {cfg.width}), that is num_labels=1 and hidden_size={cfg.width}.'
    )
  head_D = np.asarray(tensors.read(SCORE, (slice(0, 1), slice(None)))[0])
  if not np.isfinite(head_D).all():
    raise CheckpointError(
      f'{tensors.path(SCORE)}: {SCORE} has values that are not finite.'
    )
  places = None
  if mesh is not None:
    shapes = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
    places = state_sharding(shapes, mesh)
  family = find_family(hf.raw_config(path).get('model_type'), path)
  # Some keep the head of the language model they were made from: as in
  # transformers, nobody reads it.
  beside = (SCORE, family.names['unembedding'])
  params = read_params(tensors, cfg, family, places, beside)
  place = None if mesh is None else replicated(mesh)
  head_D = head_D.astype(jnp.dtype(cfg.param_dtype))
  return params, jax.device_put(head_D, place)


class RewardModel:
  """Rewards answers in texts, with the reward model's own tokenizer.

  Attributes:
    config: the decoder.
    tokenizer: a fast tokenizer of `transformers`.
    params: the decoder's weights.
    score_head: [D].
  """

  def __init__(
    self,
    path: str,
    mesh: Any = None,
    *,
    dtype: str = 'float32',
    param_dtype: str = 'float32',
    max_tokens: int = 4096,
    batch_tokens: int = 8192,
  ):
    """Loads a Hugging Face folder, or `owner/model` from the hub.

    Weights and batches are split over the devices of a mesh, all of this
    process; None: the default device. A question and its answer may have
    `max_tokens` together. About `batch_tokens` run at once, padding included;
    a longer text runs alone.

    Raises:
      ValueError: (a `CheckpointError`) naming what is missing, damaged or
        not supported, or a mesh over several processes.
      FileNotFoundError: the folder has no tokenizer.
    """
    if mesh is not None:
      processes = {device.process_index for device in mesh.devices.flat}
      if processes != {jax.process_index()}:
        raise ValueError(
          f'the mesh has devices of the processes {sorted(processes)}, but '
          'each process rewards its own answers; give a mesh of '
          'jax.local_devices(), or None.'
        )
    found = hf.resolve(path)
    self.config = load_reward_config(
      found, dtype=dtype, param_dtype=param_dtype
    )
    self.tokenizer = load_tokenizer(found)
    hf.check_vocabulary(self.config, self.tokenizer)
    raw = Fields(hf.raw_config(found), found / hf.CONFIG).raw
    self._pad_id = raw.get('pad_token_id')
    self.params, self.score_head = load_reward_params(found, self.config, mesh)
    self._mesh, self._path = mesh, path
    self._max_tokens, self._batch_tokens = max_tokens, batch_tokens
    self._step = jax.jit(
      functools.partial(reward_step, make_apply_fn(self.config))
    )

  def score(
    self, questions: Sequence[Question], answers: Sequence[Sequence[str]]
  ) -> np.ndarray:
    """Rewards Q lists of G answers, float32 [Q, G].

    Only the questions' text is read; the same texts get the same reward.

    Raises:
      ValueError: answers and questions do not fit, a text is too long or
        empty, or the chat template does not take a question and an answer.
    """
    num_samples = group_size(questions, answers)
    pairs = [
      (question.text, answer)
      for question, row in zip(questions, answers, strict=True)
      for answer in row
    ]
    rows = {pair: self._encode(*pair) for pair in dict.fromkeys(pairs)}
    reward = dict(zip(rows, self._rewards(list(rows.values())), strict=True))
    flat = np.array([reward[pair] for pair in pairs], np.float32)
    return flat.reshape(len(answers), num_samples)

  def _encode(self, question: str, answer: str) -> list[int]:
    """Returns the tokens up to the one whose state is read."""
    ids = encode_answered(self.tokenizer, question, answer)
    # transformers reads the last token that is no padding by its id, so a
    # model whose turns end in the padding's id was trained on the one before.
    while len(ids) > 1 and ids[-1] == self._pad_id:
      ids.pop()
    if not 0 < len(ids) <= self._max_tokens:
      raise ValueError(
        f'a question and its answer have {len(ids)} tokens for the reward '
        f'model {self._path!r}, but 1 to max_tokens={self._max_tokens} are '
        'allowed; raise max_tokens, or let answers be shorter. The question '
        f'begins {question[:60]!r}'
      )
    return ids

  def _rewards(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Float32, one for each row of tokens."""
    reward = np.zeros(len(rows), np.float32)
    data = 1 if self._mesh is None else self._mesh.shape['data']
    batches = padded_batches(rows, self._batch_tokens, data)
    for indices, ids_BT, length_B in batches:
      batch = (ids_BT, length_B)
      if self._mesh is not None:
        batch = shard_batch(batch, self._mesh)
      out_B = self._step(self.params, self.score_head, *batch)
      reward[indices] = np.asarray(out_B)[: len(indices)]
    return reward
