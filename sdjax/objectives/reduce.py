"""The one place where a loss per token becomes one number.

A loss is `sum(weight * loss_per_token)`. The weights are made once, from the
masks of the WHOLE batch, before it is cut into micro-batches or spread over
devices; so neither changes the loss.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Float

from sdjax.types import Array

AGGREGATIONS = (
  'token_mean',
  'sequence_mean',
  'sequence_sum',
  'sequence_sum_norm',
)


def token_weights(
  token_mask_QGT: Bool[Array, 'Q G T'],
  sample_mask_QG: Bool[Array, 'Q G'],
  aggregation: str,
  horizon: int | None = None,
) -> Float[Array, 'Q G T']:
  """Weight of each token in the loss; all 0 when nothing counts.

  What counts are the tokens inside their completion, of the rollouts that
  have a target. With `token_mean` each weighs the same, together 1. The other
  aggregations are means over counted rollouts, of the mean over its counted
  tokens (`sequence_mean`), of their sum (`sequence_sum`), or of their sum
  divided by the horizon, the longest a completion may be, or T where it is
  None (`sequence_sum_norm`: Dr. GRPO, arXiv 2503.20783). Another one is a
  `ValueError`.
  """
  counted = token_mask_QGT & sample_mask_QG[..., None]
  weight = counted.astype(float)  # float32; float64 under x64
  if aggregation == 'token_mean':
    return weight / jnp.maximum(weight.sum(), 1)
  tokens_QG = weight.sum(axis=-1)
  per_sequence = weight / jnp.maximum((tokens_QG > 0).sum(), 1)
  if aggregation == 'sequence_mean':
    return per_sequence / jnp.maximum(tokens_QG, 1)[..., None]
  if aggregation == 'sequence_sum':
    return per_sequence
  if aggregation == 'sequence_sum_norm':
    return per_sequence / (horizon or token_mask_QGT.shape[-1])
  raise ValueError(f'aggregation={aggregation!r} is not one of {AGGREGATIONS}.')
