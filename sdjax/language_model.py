"""A model ready to use: weights, forward, tokenizer and where answers end."""

import dataclasses
from typing import Any

from sdjax import config as config_lib
from sdjax.data import tokenizer as tokenizer_lib
from sdjax.models import hf
from sdjax.models.transformer import TransformerConfig, make_apply_fn
from sdjax.types import ApplyFn, Params


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """What `load` finds in a checkpoint folder.

  Attributes:
    config: sizes and numerics.
    apply_fn: `apply_fn(params, *args, method=name)`, as the steps take it.
    params: the weights, host arrays.
    tokenizer: a fast tokenizer of `transformers`.
    eos_ids: tokens that end a completion.
  """

  config: TransformerConfig
  apply_fn: ApplyFn
  params: Params
  tokenizer: Any
  eos_ids: tuple[int, ...]


def load(
  path: str,
  *,
  dtype: str = 'float32',
  param_dtype: str = 'float32',
  remat: str = 'none',
) -> LanguageModel:
  """Loads a Hugging Face checkpoint folder.

  Args:
    path: the folder, or `builtin:NAME` for a model inside the package.
    dtype: what matrix products run in.
    param_dtype: what the weights are kept in.
    remat: what the backward pass recomputes; see `TransformerConfig`.

  Returns:
    The model, its weights still on the host.

  Raises:
    ValueError: (a `CheckpointError`) naming what is missing, damaged or not
      supported.
  """
  folder = hf.resolve(path)
  cfg = hf.load_config(
    folder, dtype=dtype, param_dtype=param_dtype, remat=remat
  )
  tokenizer = tokenizer_lib.load_tokenizer(folder)
  hf.check_vocabulary(cfg, tokenizer)
  return LanguageModel(
    config=cfg,
    apply_fn=make_apply_fn(cfg),
    params=hf.load_params(folder, cfg),
    tokenizer=tokenizer,
    eos_ids=tokenizer_lib.eos_ids(folder, tokenizer),
  )


def load_from_config(model: config_lib.Model) -> LanguageModel:
  """Loads the model a run's config names."""
  return load(
    model.path,
    dtype=model.dtype,
    param_dtype=model.param_dtype,
    remat=model.remat,
  )
