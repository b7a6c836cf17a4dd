"""What `--config.print` shows, and what is checked before a run starts."""

import dataclasses

import jax
import models
import numpy as np
import pytest
from chats import FAMILIES, family_tokenizer

from sdjax import main
from sdjax.config import schema as c
from sdjax.config.convert import replace
from sdjax.feedback.grading import Graded
from sdjax.methods import METHODS
from sdjax.models import hf
from sdjax.models.transformer import init_params
from sdjax.tasks import make_task
from sdjax.tasks.base import Verdict
from sdjax.training import trainer as trainer_lib
from sdjax.training.describe import contexts_in_words

FEW = c.ConceptGraph(train_size=8, eval_size=4)


@pytest.fixture(scope='module')
def sd(tmp_path_factory):
  cache = str(tmp_path_factory.mktemp('data'))
  return c.Config(task=dataclasses.replace(FEW, cache_dir=cache))


def chat(config, template=''):
  """The same with the paper's rendering, for a chat model."""
  return replace(
    config,
    task__rendering='text',
    method__demonstrations__template=template,
    method__demonstrations__max_context=9999,
  )


def test_the_example_is_a_right_answer(sd):
  for config in (sd, chat(sd)):
    task = make_task(config.task)
    for split in task.splits:
      question = task.questions(split)[0]
      assert task.verify(question, task.example(question)).correct


def test_both_contexts_are_shown(sd):
  task = make_task(sd.task)
  question = task.questions('train')[0]
  lines = main.show_contexts(sd).split('\n')
  shown = f'[the same from here]{question.text}[the answer begins here]'
  words, more = len(question.text.split()), len(task.example(question).split())
  assert lines == [
    f"the student's context, {words} tokens:",
    shown,
    '',
    f"the teacher's context, {words + more + 1} tokens, of which the last "
    f'{words} are the same; the demonstration lost 0:',
    f'{task.example(question)} ={shown}',
  ]


def test_without_demonstrations_the_student_is_alone(sd):
  config = dataclasses.replace(sd, method=c.PolicyGradient())
  shown = main.show_contexts(config)
  assert shown.startswith("the student's context") and 'teacher' not in shown
  assert shown.endswith('[the answer begins here]')


@pytest.mark.parametrize('thinking', [False, True])
def test_a_chat_is_shown_as_it_is(sd, thinking):
  config = replace(chat(sd), model__thinking=thinking)
  tokenizer = family_tokenizer('qwen3')
  shown = contexts_in_words(config, make_task(config.task), tokenizer)
  prompt = FAMILIES['qwen3'].prompt
  if thinking:
    prompt = FAMILIES['qwen3'].thinking_prompt
  assert shown.count(f'{prompt}[the answer begins here]') == 2
  assert shown.count('<|im_start|>user\nBelow') == 2
  assert 'error' not in shown


def test_a_mistake_is_shown_with_the_contexts(sd):
  config = replace(
    sd, method__demonstrations__template='{question} = {demonstration}'
  )
  assert '\n\nerror: ' in main.show_contexts(config)
  assert "the student's context" in main.show_contexts(config)


def test_what_cannot_be_shown_is_one_line(sd, tmp_path):
  (tmp_path / 'file').write_text('')
  for config, why in (
    (replace(sd, model__path=str(tmp_path / 'none')), 'none'),
    (replace(sd, model__path=str(tmp_path)), 'tokenizer.json'),
    (replace(sd, model__thinking=True), 'no chat template'),
    (replace(sd, task__cache_dir=str(tmp_path / 'file')), 'cache_dir'),
    (c.Config(mode='pretrain', model=None, method=c.Pretraining()), 'pretrain'),
  ):
    shown = main.show_contexts(config)
    assert why in shown and '\n' not in shown


def test_no_run_starts_with_contexts_that_end_differently(sd):
  make, task = METHODS['sd'], make_task(sd.task)
  make(sd, lambda: None, task, family_tokenizer('chatml'))
  task = make_task(chat(sd).task)
  make(chat(sd), lambda: None, task, family_tokenizer('chatml'))
  wrong = '{question} {demonstration} Go on:'
  with pytest.raises(c.ConfigError, match='same tokens'):
    trainer_lib.Trainer(replace(sd, method__demonstrations__template=wrong))


def test_no_run_starts_with_thinking_that_nothing_listens_to(sd):
  with pytest.raises(c.ConfigError, match='model.thinking=True does nothing'):
    trainer_lib.Trainer(replace(sd, model__thinking=True))


@pytest.mark.parametrize('thinking', [False, True])
def test_a_chat_model_is_asked_in_the_mode_of_the_config(
  sd, tmp_path, monkeypatch, thinking
):
  family, tokenizer = FAMILIES['qwen3'], family_tokenizer('qwen3')
  cfg = models.config(vocab_size=len(tokenizer))
  params = init_params(cfg, jax.random.key(0))
  eos = [tokenizer.eos_token_id]
  hf.save_checkpoint(tmp_path, cfg, params, tokenizer, eos)
  config = replace(
    sd,
    model__path=str(tmp_path),
    model__thinking=thinking,
    method__demonstrations__max_context=400,
    rollout=c.Rollout(2, 2, max_context=400, context_buckets=(400,)),
    eval=c.Eval(
      sets=('harder',),
      during=('harder',),
      num_questions=2,
      batch_questions=2,
      max_context=400,
    ),
  )
  with models.one_device():
    trainer = trainer_lib.Trainer(config)
  questions = [trainer.task.questions('train')[i] for i in range(2)]
  answers = [[trainer.task.example(question)] * 2 for question in questions]
  right = [[Verdict(correct=True, reward=1.0)] * 2] * 2
  shape = len(answers), len(answers[0])
  graded = Graded(
    questions, answers, right, np.ones(shape, int), np.ones(shape, bool)
  )
  evidence = trainer.method.gather(graded, 0).evidence
  sampled = []

  def sample(params, prompts, *rest):
    sampled.append(prompts.ids)
    raise InterruptedError

  monkeypatch.setattr(trainer.evaluator, 'rollout', sample)
  with pytest.raises(InterruptedError):
    trainer.evaluator(trainer.state.params, ['harder'])
  prompt = tokenizer.encode(
    family.thinking_prompt if thinking else family.prompt
  )
  for rows in (
    trainer.encode(questions).ids,
    evidence.context_ids[:, 0],
    sampled[0],
  ):
    ends = np.asarray(rows)[:, -len(prompt) :].tolist()
    assert ends == [prompt] * 2
