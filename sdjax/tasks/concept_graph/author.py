"""The author of the documents that a small model is pretrained on."""

import dataclasses
from typing import Self

from sdjax.options import ConfigError, Count, Section, Share, Size


@dataclasses.dataclass(frozen=True)
class Pretraining(Section):
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
  num_layers: Size = 3
  width: Size = 64
  num_heads: Size = 4
  num_kv_heads: Size = 2
  head_dim: Size = 16
  ffn_width: Size = 192
  batch_size: Size = 128
  max_context: Size = 48
  careful_steps: Count = 1750
  correct_share: Share = 0.6
  easy_share: Share = 0.95
  demonstration_share: Share = 0.5
  demonstration_easy_share: Share = 0.6
  copy_share: Share = 0.98
  slip_share: Share = 0.02
  cut_share: Share = 0.4
  varied_share: Share = 0.3

  def __post_init__(self):
    """Checks the shares that shape the documents.

    Raises ConfigError if the shares of copies and slips add up to more than 1.
    """
    super().__post_init__()
    if self.copy_share + self.slip_share > 1:
      raise ConfigError(
        f'copy_share={self.copy_share} and slip_share='
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
