"""The README's code is run as it stands."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import sdjax
from sdjax.models.cache import KV

README = (Path(__file__).parents[1] / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', README, re.S)


def test_the_research_example_runs_and_learns_its_reward():
  names = {}
  exec(BLOCKS[0], names)  # noqa: S102
  assert names['metrics']['grad_norm'] > 0
  moved = jax.tree.map(
    lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()),
    names['lm'].params,
    names['state'].params,
  )
  assert all(jax.tree.leaves(moved))


class Bigram(nnx.Module):
  """The smallest nnx module with the two methods that steps ask for."""

  def __init__(self, vocab: int, rngs: nnx.Rngs):
    self.table = nnx.Param(jax.random.normal(rngs.params(), (vocab, vocab)))

  def hidden(self, ids_QGT, *, prefix=None, suffix=None, pad_QG=None):
    del prefix, suffix, pad_QG
    nothing = jnp.zeros((1, *ids_QGT.shape, 1, 1))
    return self.table[...][ids_QGT], KV(k=nothing, v=nothing)

  def head(self, hidden):
    return hidden


def test_an_nnx_module_adapts_in_two_lines():
  names = {'nnx': nnx, 'model': Bigram(5, nnx.Rngs(0))}
  exec(BLOCKS[1], names)  # noqa: S102
  prompts = sdjax.Prompts(
    ids=jnp.array([[0, 3]]), length=jnp.array([2]), question_id=jnp.array([0])
  )
  rollout = sdjax.rollout_step(
    names['apply_fn'],
    names['params'],
    prompts,
    jax.random.key(0),
    num_samples=4,
    max_new_tokens=3,
    eos_ids=(4,),
  )
  logp = jax.nn.log_softmax(names['model'].table[...])
  first = np.asarray(rollout.ids[0, :, 0])
  np.testing.assert_allclose(
    rollout.behavior_logp[0, :, 0], logp[3, first], rtol=1e-5
  )
