"""The author of the documents that a small model is pretrained on."""

import dataclasses
from typing import Self

from sdjax.options import ConfigError


@dataclasses.dataclass(frozen=True)
class Pretraining:
  """Supervised next-token training of a small model from nothing.

  The documents are answers to graphs as in training, written by an
  imperfect author: half of them follow a demonstration in their context.

  Attributes:
    name: selects this method.
    out: folder the Hugging Face checkpoint is written to.
    num_layers: decoder layers.
    width: D.
    num_heads: N.
    num_kv_heads: M.
    head_dim: H.
    ffn_width: F.
    batch_size: documents a step.
    max_context: width of a document's context in tokens.
    careful_steps: steps at the start whose documents come from an author who
      is always right and takes either route equally often. What an author
      who is right half the time cannot teach (which chains end in the
      target) is learned here; the imperfect author then sets the habits.
    correct_share: share of documents without a demonstration that are right.
    easy_share: share of right ones that take the easy route.
    demonstration_share: share of documents with a correct demonstration.
    demonstration_easy_share: share of demonstrations on the easy route.
    copy_share: share of those documents that repeat the demonstration.
    slip_share: share of those documents that are wrong.
    cut_share: share of documents with a cut chain, which their author does
      not walk.
    varied_share: share of documents whose chain lengths are all random.
  """

  name: str = 'pretrain'
  out: str = ''
  num_layers: int = 3
  width: int = 64
  num_heads: int = 4
  num_kv_heads: int = 2
  head_dim: int = 16
  ffn_width: int = 192
  batch_size: int = 128
  max_context: int = 48
  careful_steps: int = 1750
  correct_share: float = 0.6
  easy_share: float = 0.95
  demonstration_share: float = 0.5
  demonstration_easy_share: float = 0.6
  copy_share: float = 0.98
  slip_share: float = 0.02
  cut_share: float = 0.4
  varied_share: float = 0.3

  def __post_init__(self):
    """Checks the shares that shape the documents.

    Raises ConfigError if a share is outside 0..1, or the shares of copies and
    slips add up to more than 1.
    """
    for field in dataclasses.fields(self):
      share = getattr(self, field.name)
      if field.name.endswith('_share') and not 0 <= share <= 1:
        raise ConfigError(f'method.{field.name} is {share}; allowed: 0..1')
    if self.copy_share + self.slip_share > 1:
      raise ConfigError(
        f'method.copy_share = {self.copy_share} and method.slip_share = '
        f'{self.slip_share} add up to more than 1; lower one of them'
      )

  def careful(self) -> Self:
    """Returns the author who is always right and has no favourite route."""
    return dataclasses.replace(
      self,
      correct_share=1.0,
      easy_share=0.5,
      demonstration_easy_share=0.5,
      slip_share=0.0,
    )
