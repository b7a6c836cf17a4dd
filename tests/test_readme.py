"""The README's code is run as it stands."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from models import one_device

import sdjax
from sdjax import methods
from sdjax.config import schema as c
from sdjax.config.convert import replace
from sdjax.models.cache import KV
from sdjax.training import loop as train

README = (Path(__file__).parents[1] / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', README, re.S)


def test_the_research_example_learns_from_peers_and_from_rewards(capsys):
  code = BLOCKS[0]
  assert len([x for x in code.splitlines() if x.strip()]) <= 30
  names: dict[str, Any] = {}
  exec(code, names)  # noqa: S102
  said = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
  assert said == ['sdjax.steps.sd', 'sdjax.steps.rl']

  def after(line, evidence, teacher=None):
    """The example's update by one of its methods, written out."""
    lm, batch = names['lm'], (names['prompts'], names['rollout'])
    signal = line.signal_step(
      lm.apply_fn, lm.params, teacher, None, *batch, evidence
    )
    # Compiled, as there: Adam makes much of a gradient that is 0 but for
    # rounding.
    step = functools.partial(
      sdjax.update_step,
      loss_fn=functools.partial(line.loss, lm.apply_fn),
      optimizer=names['optimizer'],
    )
    return jax.jit(step)(names['start'], teacher, None, *batch, signal)

  # The example ends with RL; without what a teacher is shown nothing changes.
  correct = np.asarray(names['correct'], np.float32)
  assert 0 < correct.mean() < 1
  state, metrics = after(sdjax.rl, sdjax.rl.Evidence(reward=correct))
  assert metrics['grad_norm'] > 0
  assert all(jax.tree.leaves(jax.tree.map(close, state, names['state'])))
  # Self-distillation needs no reward, and its teacher is the student.
  evidence = names['evidence'][sdjax.sd]
  taught, metrics = after(sdjax.sd, evidence)
  again, _ = after(sdjax.sd, evidence, names['lm'].params)
  assert metrics['divergence'] > 0 and metrics['grad_norm'] > 0
  assert all(jax.tree.leaves(jax.tree.map(close, taught, again)))
  for learned in (state, taught):
    moved = jax.tree.map(
      lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()),
      names['lm'].params,
      learned.params,
    )
    assert all(jax.tree.leaves(moved))
  # What a teacher was shown: a right answer, then the question.
  shown = np.asarray(evidence.context_ids[0, 0])[
    -evidence.context_length[0, 0] :
  ]
  text = names['lm'].tokenizer.decode(shown)
  assert text.partition(' = ')[0] in names['right']
  assert text.partition(' = ')[2] == names['question']


def close(a, b):
  return np.allclose(a, b, atol=1e-5)


def test_a_method_of_ones_own_runs(monkeypatch, tmp_path):
  code = BLOCKS[2]
  assert len([x for x in code.splitlines() if x.strip()]) <= 15
  advantages = []

  def run(config, path, method):
    """The README's run, cut short; keeps the advantages of both."""
    assert path == 'runs/bounded'
    config = replace(
      config,
      rollout=c.Rollout(num_questions=2, num_samples=4),
      train=c.Train(num_steps=1),
      eval=c.Eval(sets=(), during=(), num_questions=2, batch_questions=2),
    )

    def spied(*args):
      ours, grpo = method(*args), methods.policy_gradient(*args)

      def signal(*batch):
        advantages.append([x.signal(*batch).advantage for x in (grpo, ours)])
        jax.debug.callback(lambda *x: seen.append(x), *advantages[-1])
        return ours.signal(*batch)

      return dataclasses.replace(ours, signal=signal)

    with one_device():
      plain(config, str(tmp_path), spied)
    jax.effects_barrier()

  seen = []
  plain = train.train
  monkeypatch.setattr(train, 'train', run)
  exec(code, {})  # noqa: S102
  assert (tmp_path / 'config.json').is_file() and seen
  for grpo, ours in seen:
    np.testing.assert_allclose(ours, np.tanh(grpo), atol=1e-6)


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
