"""Shapes in annotations are checked while the tests run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from sdjax.forecast.dynamics import restrict
from sdjax.models.attention import Segment, attend
from sdjax.models.rope import rotate
from sdjax.types import Prompts, length_mask

PROMPTS = Prompts(
  ids=np.zeros((2, 3), np.int32),
  length=np.ones(2, np.int32),
  question_id=np.arange(2),
)


@pytest.mark.parametrize(
  ('call', 'argument'),
  [
    (lambda: length_mask(jnp.ones((2, 3)), 4), 'length'),  # not whole
    (lambda: restrict(np.zeros(2), np.zeros((3, 1))), 'logp_given'),
    (
      lambda: rotate(
        jnp.zeros((1, 1, 2, 3, 4)), jnp.zeros((1, 1, 2), int), jnp.zeros(3)
      ),
      'frequency',
    ),
    (lambda: attend(jnp.zeros((1, 2, 3, 4)), [], 1.0), 'q_QGTNH'),
  ],
)
def test_a_wrong_shape_is_refused(call, argument):
  with pytest.raises(TypeCheckError, match=f"parameter '{argument}'"):
    call()


def test_a_wrong_shape_is_refused_under_jit():
  with pytest.raises(TypeCheckError, match="parameter 'length'"):
    jax.jit(lambda x: length_mask(x, 4))(jnp.ones(2))


def test_fields_of_one_struct_must_fit_together():
  with pytest.raises(TypeCheckError, match='question_id'):
    Prompts(PROMPTS.ids, PROMPTS.length, question_id=np.arange(3))
  with pytest.raises(TypeCheckError, match='ids'):
    PROMPTS.replace(ids=np.zeros((2, 3)))  # pyright: ignore


def test_what_jax_puts_into_a_struct_may_be_anything():
  sentinel = object()
  assert jax.tree.map(lambda _: sentinel, PROMPTS).ids is sentinel
  stacked = jax.vmap(lambda x: x)(jax.tree.map(lambda x: x[None], PROMPTS))
  assert stacked.ids.shape == (1, 2, 3)
  abstract = jax.eval_shape(lambda x: x, PROMPTS)
  assert isinstance(abstract.length, jax.ShapeDtypeStruct)


def test_scores_of_a_segment_that_does_not_fit_are_refused():
  q, kv = jnp.zeros((1, 1, 2, 4, 8)), jnp.zeros((1, 3, 2, 8))
  seen = Segment(kv, kv, jnp.ones((1, 1, 2, 3), bool))
  assert attend(q, [seen], 1.0).shape == q.shape
