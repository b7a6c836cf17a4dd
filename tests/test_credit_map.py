"""What a teacher and what RL credit: by hand, and in whole runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import chain, one_device

import sdjax
from sdjax.config import schema as c
from sdjax.config.check import validate
from sdjax.config.convert import replace
from sdjax.data.context import encode_context
from sdjax.data.json_files import read_json_lines
from sdjax.objectives.mixing import RLCSD
from sdjax.steps.teacher import Current
from sdjax.training import credit_map, log
from sdjax.training import loop as train_lib
from sdjax.training.run_folder import Workdir
from sdjax.training.trainer import Trainer
from sdjax.types import Prompts, Rewards, Rollout, TeacherContexts

PROBS = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
TEACHER = np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6], [0.6, 0.2, 0.2]])

PROMPTS = Prompts(
  ids=jnp.array([[0, 1]]), length=jnp.array([2]), question_id=jnp.arange(1)
)
ROLLOUT = Rollout(
  ids=jnp.array([[[2, 0], [0, 0], [1, 1]]]),
  length=jnp.array([[2, 2, 1]]),
  # Of a truncated distribution, which the teacher must not be compared with.
  behavior_logp=jnp.zeros((1, 3, 2)),
  entropy=jnp.zeros((1, 3, 2)),
  finished=jnp.ones((1, 3), bool),
)
# Contexts that end in 2 and in 0; the last rollout is shown neither.
REWARDS = Rewards(reward=jnp.array([[1.0, 0.0, 0.0]]))
EVIDENCE = TeacherContexts(
  context_ids=jnp.array([[[1, 2], [1, 0]]]),
  context_length=jnp.array([[2, 2]]),
  context_index=jnp.array([[[0, 0], [0, 1], [0, 0]]]),
  context_mask=jnp.array([[[True, False], [True, True], [False, False]]]),
)


def test_token_credit_by_hand():
  apply_fn, params = chain(PROBS)
  log_ratio, advantage = credit_map.token_credit(
    apply_fn, params, chain(TEACHER)[1], PROMPTS, ROLLOUT, EVIDENCE, REWARDS
  )
  both = (np.log(0.6 / 0.1) + np.log(0.25 / 0.1)) / 2
  want = [
    # 2 after its context's 2, but 1 for the student; then 0 after that 2.
    [np.log(0.2 / 0.7), np.log(0.6 / 0.3)],
    [both, np.log(0.25 / 0.5)],
    [0, 0],
  ]
  np.testing.assert_allclose(log_ratio[0], want, atol=1e-6)
  spread = np.sqrt(2) / 3 + 1e-4
  np.testing.assert_allclose(
    advantage[0], [2 / 3 / spread, -1 / 3 / spread, -1 / 3 / spread], rtol=1e-5
  )


def test_the_questions_with_most_to_see_come_first():
  correct = np.zeros((4, 4), bool)
  correct[0] = True
  correct[1, :1] = correct[2, :2] = correct[3, :3] = True
  assert credit_map.telling(correct).tolist() == [2, 1, 3, 0]


class Bytes:
  """A tokenizer of UTF-8 bytes, with 256 for the end."""

  def decode(self, ids):
    text = bytes(i for i in ids if i < 256).decode(errors='replace')
    return text + '<end>' * ids.count(256)


def test_a_character_of_several_tokens_stands_at_its_last():
  ids = [*'aé '.encode(), *'€'.encode(), 256]
  texts = credit_map.token_texts(Bytes(), ids)
  assert texts == ['a', '', 'é', ' ', '', '', '€', '<end>']
  assert credit_map.token_texts(Bytes(), ids[:2]) == ['a', '�']
  assert credit_map.token_texts(Bytes(), []) == []


@pytest.fixture(scope='module', autouse=True)
def on_one_device():
  """Sharding is tested elsewhere."""
  with one_device():
    yield


METHODS = {
  'sd': c.SelfDistillation(demonstrations=c.Demonstrations(count=2)),
  'rl': c.PolicyGradient(),
  'mix': c.Mix(
    rule=RLCSD(),
    sd=c.SelfDistillation(
      teacher=Current(), demonstrations=c.Demonstrations(contrast=1)
    ),
  ),
}


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp('data'))


def small(method, cache, **changes):
  config = c.Config(
    method=METHODS[method],
    task=c.ConceptGraph(cache_dir=cache),
    rollout=c.Rollout(num_questions=4, num_samples=4),
    train=c.Train(num_steps=4, eval_every=0, checkpoint_every=2),
    eval=c.Eval(
      sets=('in_distribution',),
      during=(),
      num_questions=2,
      num_samples=2,
      batch_questions=2,
    ),
  )
  config = replace(config, **changes)
  validate(config)
  return config


def credit(folder):
  return list(read_json_lines(folder / 'credit.jsonl'))


def log_probabilities(lm, context, ids):
  """Of each token after a context, by the plain forward."""
  whole = np.zeros((1, 64), np.int32)  # one width compiles once
  whole[0, : len(context) + len(ids)] = [*context, *ids]
  logp = jax.nn.log_softmax(sdjax.logits(lm, whole)[0].astype(jnp.float32))
  at = np.arange(len(ids)) + len(context) - 1
  return np.asarray(logp)[at, ids]


@pytest.mark.parametrize('method', ['sd', 'rl', 'mix'])
def test_a_run_of_any_method_writes_what_a_direct_computation_says(
  method, cache, tmp_path
):
  train_lib.train(small(method, cache, train__num_steps=2), str(tmp_path))
  records = credit(tmp_path)
  assert [r['step'] for r in records] == [1] * 8 + [2] * 8
  assert [r['sample'] for r in records] == [0, 1, 2, 3] * 4
  rollouts = {
    (r['step'], r['question_id'], r['sample']): r
    for r in read_json_lines(tmp_path / 'rollouts.jsonl')
  }
  lm = sdjax.load('builtin:concept_graph_base')
  task = Trainer(small(method, cache)).task
  taught = 0
  for record in records:
    logged = rollouts[record['step'], record['question_id'], record['sample']]
    assert record['correct'] == logged['correct']
    text = ''.join(record['tokens'])
    assert text.removesuffix('<eos>').strip() == logged['answer']
    if method == 'sd':
      assert record['demonstration'] == '\n'.join(logged['demonstrations'])
    assert 'WRONG' not in record['demonstration']
    assert (record['log_ratio'] is None) == (not record['demonstration'])
    if record['log_ratio'] is None or record['step'] > 1:
      continue
    # At the first step teacher and student are the model the run began with.
    ids = lm.tokenizer.encode(text)
    plain = lm.tokenizer.encode(record['question'])
    student = log_probabilities(lm, plain, ids)
    teachers = []
    for shown in record['demonstration'].split('\n'):
      context, _ = encode_context(
        lm.tokenizer, task.teacher_template, record['question'], shown, 99
      )
      teachers.append(log_probabilities(lm, context, ids))
    np.testing.assert_allclose(
      record['log_ratio'], np.mean(teachers, axis=0) - student, atol=2e-3
    )
    taught += 1
  assert taught
  for begin in range(0, 16, 4):
    group = records[begin : begin + 4]
    right = np.array([r['correct'] for r in group], float)
    np.testing.assert_allclose(
      [r['advantage'] for r in group],
      (right - right.mean()) / (right.std() + 1e-4),
      atol=1e-3,
    )


def test_a_run_broken_and_prolonged_writes_the_same(
  cache, tmp_path, monkeypatch
):
  config = small('rl', cache)
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  train_lib.train(config, str(whole))
  train_lib.train(replace(config, train__num_steps=2), str(parts))
  assert {r['step'] for r in credit(parts)} == {1, 2}

  class Killed(Exception):
    pass

  def kill(self, done, *_, **__):
    if done == 4:
      raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(log.Progress, 'update', kill)
    with pytest.raises(Killed):
      train_lib.train(config, str(parts))
  # The last step is logged, but its checkpoint was never written.
  assert {r['step'] for r in credit(parts)} == {1, 4}
  train_lib.train(config, str(parts))
  files = [folder / 'credit.jsonl' for folder in (whole, parts)]
  assert files[0].read_bytes() == files[1].read_bytes() != b''


def test_none_is_written_when_none_is_asked_for(cache, tmp_path):
  config = small('rl', cache, train__num_steps=1, train__credit_questions=0)
  train_lib.train(config, str(tmp_path))
  assert (tmp_path / 'credit.jsonl').read_bytes() == b''
  with pytest.raises(ValueError, match='^credit_questions=-1 must be'):
    small('rl', cache, train__credit_questions=-1)


def test_the_log_goes_back_to_some_steps(cache, tmp_path):
  workdir = Workdir(str(tmp_path), small('rl', cache))
  for step in (1, 1, 4):
    workdir.credit.append({'step': step})
  workdir.rewind_credit([1, 4])
  assert credit(tmp_path) == [{'step': 1}, {'step': 1}, {'step': 4}]
  workdir.rewind_credit([1])
  assert credit(tmp_path) == [{'step': 1}, {'step': 1}]
  workdir.rewind_credit([])
  assert credit(tmp_path) == []
  workdir.close()
