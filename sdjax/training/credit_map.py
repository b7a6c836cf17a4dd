"""What two ways to learn reward: tokens by a teacher, whole answers by RL.

At the first and at the last step of a run, whatever its method, the rollouts
of a few questions are seen through both, and go to `credit.jsonl`. (A run that
an alarm stops has the first step only: which is its last is known too late.)
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from sdjax.data.context import encode_context
from sdjax.feedback import demonstrations
from sdjax.feedback.grading import Graded
from sdjax.feedback.strategies import Demonstrations
from sdjax.methods import demonstrated, shown_of, teacher_contexts
from sdjax.models.sharding import shard_batch
from sdjax.objectives.advantages import GRPO
from sdjax.objectives.mixing import mean_over_teachers
from sdjax.objectives.pooling import MeanLoss
from sdjax.steps import sd
from sdjax.steps.sampling import Sampling
from sdjax.steps.score import student_hidden, token_logp
from sdjax.steps.student import Shared
from sdjax.steps.teacher import Target, teacher_tokens
from sdjax.training.hooks import Hook, Run
from sdjax.training.programs import Program, batch_shapes
from sdjax.training.trainer import Sampled, Trainer
from sdjax.types import ApplyFn, Gathered, Params, Prompts, Rewards, Rollout


def token_credit(
  apply_fn: ApplyFn,
  params: Params,
  teacher_params: Params,
  prompts: Prompts,
  rollout: Rollout,
  evidence: sd.Evidence,
  rewards: Rewards,
  *,
  temperature: float = 1.0,
  chunk: int = 16,
) -> tuple[jax.Array, jax.Array]:
  """What a teacher says of each token, and GRPO of each rollout.

  The rollout is of `params`; `temperature` divides all logits, those of
  `chunk` tokens exist at once.

  Returns:
    float32 [Q, G, T], nats, log q(token | demonstration) - log p(token), the
    mean over the rollout's demonstrations, 0 where there is none; the
    teacher's distribution is its own, whatever a method mixes it with. And
    float32 [Q, G], GRPO's advantage.
  """
  view = {'temperature': temperature, 'chunk': chunk}
  signal = sd.signal_step(
    apply_fn,
    params,
    teacher_params,
    None,
    prompts,
    rollout,
    evidence,
    shared=Shared(sampling=Sampling(temperature), chunk=chunk),
  )
  assert signal.teacher is not None
  tokens = teacher_tokens(
    apply_fn,
    teacher_params,
    None,
    signal.teacher,
    rollout.ids,
    Target(MeanLoss(), 1.0),
    **view,
  )
  # Computed anew: a truncating sampler's distribution is not the model's.
  hidden = student_hidden(apply_fn, params, prompts, rollout.ids)
  logp_QGT = token_logp(apply_fn, params, hidden, rollout.ids, **view)
  log_ratio_QGT = mean_over_teachers(
    tokens.logp - logp_QGT[..., None], tokens.found
  )
  return log_ratio_QGT, GRPO()(rewards)


def telling(correct_QG: np.ndarray) -> np.ndarray:
  """Orders questions by how much there is to see in their rollouts [Q, G].

  Those with most pairs of a right and a wrong rollout come first, equal ones
  in their order.
  """
  right_Q = correct_QG.sum(axis=1)
  return np.argsort(-right_Q * (correct_QG.shape[1] - right_Q), kind='stable')


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
  """Splits a completion's text by its tokens.

  Joined they are the text with its control tokens; a character made of
  several tokens stands at its last one.
  """
  texts = []
  # Decoded with what stands before it: spaces belong to neither alone.
  begin, done = 0, 0
  for end in range(1, len(ids) + 1):
    before = tokenizer.decode(ids[begin:done])
    text = tokenizer.decode(ids[begin:end])
    if text.endswith('\N{REPLACEMENT CHARACTER}') and end < len(ids):
      texts.append('')
    else:
      texts.append(text[len(before) :])
      begin, done = done, end
  return texts


class CreditMap(Hook):
  """Credits the rollouts of a run's first and last step."""

  def __init__(self, trainer: Trainer):
    """Takes from a trainer what is needed; nothing runs yet.

    Where its method gathers contexts for a teacher they are used, with that
    teacher; otherwise the current weights are the teacher and are shown a
    random correct peer, as self-distillation does by default.
    """
    config = trainer.config
    assert config.rollout and config.loss
    self._trainer = trainer
    shown = shown_of(config)
    self._contrast = shown.contrast if shown else 0
    sizes = demonstrations.context_buckets(config.rollout.num_samples)
    # One size, or the last step might compile anew.
    self._num_contexts = max(trainer.method.num_contexts or sizes)
    self._credit = Program(
      'credit',
      functools.partial(
        token_credit,
        trainer.model.apply_fn,
        temperature=config.rollout.temperature,
        chunk=config.loss.chunk,
      ),
    )

  def on_start(self, run: Run) -> None:
    """Goes back to what the run goes on from, and compiles what is left."""
    due = self._due(run)
    run.folder.rewind_credit([step for step in due if step <= run.step])
    if not run.stopped and any(step > run.step for step in due):
      rollout = self._trainer.config.rollout
      assert rollout
      for width in rollout.context_buckets:
        _, _, batch = self._batch(self._trainer.blank(width), 1)
        self._credit.compile(
          *self._weights(), *batch_shapes(batch, self._trainer.mesh)
        )

  def on_rollouts(self, run: Run) -> None:
    """Writes the records of a step that is due."""
    if run.step in self._due(run):
      assert run.batch
      for record in self.records(run.batch, run.step):
        run.folder.credit.append(record)

  def _due(self, run: Run) -> set[int]:
    asked = self._trainer.config.train.credit_questions
    return {1, run.total} if asked else set()

  def records(self, batch: Sampled, step: int) -> Iterator[dict[str, Any]]:
    """Yields the lines of `credit.jsonl` for a step, before its update.

    One a rollout of the most telling questions; `log_ratio` is None where the
    teacher had nothing to be shown.
    """
    trainer, graded = self._trainer, batch.graded
    rows, gathered, arrays = self._batch(batch, step)
    mask_QGK = arrays[2].context_mask
    log_ratio_QGT, advantage_QG = jax.device_get(
      self._credit(*self._weights(), *shard_batch(arrays, trainer.mesh))
    )
    number = trainer.config.train.credit_questions
    for row, q in enumerate(rows[:number]):
      for g, verdict in enumerate(graded.verdicts[q]):
        length = batch.host.length[q, g]
        teachers = int(mask_QGK[row, g].sum())
        log_ratio = log_ratio_QGT[row, g, :length].tolist()
        yield {
          'step': step,
          'question_id': graded.questions[q].question_id,
          'sample': g,
          'question': graded.questions[q].text,
          'tokens': token_texts(
            trainer.model.tokenizer, batch.host.ids[q, g, :length].tolist()
          ),
          'log_ratio': [round(x, 4) for x in log_ratio] if teachers else None,
          'advantage': round(float(advantage_QG[row, g]), 4),
          'correct': verdict.correct,
          'demonstration': '\n'.join(gathered.shown[q][g][:teachers]),
        }

  def _weights(self) -> tuple[Params, Params]:
    """The student's, and the teacher's, which may be the same."""
    student = self._trainer.student()
    return student, self._trainer.teacher_weights() or student

  def _batch(
    self, batch: Sampled, step: int
  ) -> tuple[np.ndarray, Gathered, tuple[Any, ...]]:
    """Picks the questions to credit.

    Returns:
      Their places in the batch, what was gathered about all of it, and of
      those questions alone prompts, rollout, contexts and rewards.
    """
    trainer, graded = self._trainer, batch.graded
    number, data = trainer.config.train.credit_questions, trainer.mesh.shape
    # The mesh splits questions evenly.
    rows = telling(graded.correct)[: -(-number // data['data']) * data['data']]
    gathered = batch.gathered
    contexts = teacher_contexts(gathered.evidence)
    if contexts is None:
      gathered = self._gather()(graded, step - 1)
      contexts = gathered.evidence
    prompts, rollout = jax.tree.map(
      lambda x: np.asarray(x)[rows], (batch.prompts, batch.host)
    )
    rewards = Rewards(reward=graded.reward[rows].astype(np.float32))
    arrays = (prompts, rollout, self._evidence(contexts, rows), rewards)
    return rows, gathered, arrays

  def _evidence(self, evidence: sd.Evidence, rows: np.ndarray) -> sd.Evidence:
    """Contexts of some questions, without the wrong ones."""
    num_k = np.shape(evidence.context_mask)[-1] - self._contrast
    more = self._num_contexts - np.shape(evidence.context_ids)[1]
    return sd.Evidence(
      context_ids=np.pad(
        evidence.context_ids[rows], ((0, 0), (0, more), (0, 0))
      ),
      context_length=np.pad(
        evidence.context_length[rows],
        ((0, 0), (0, more)),
        constant_values=1,
      ),
      context_index=evidence.context_index[rows][..., :num_k],
      context_mask=evidence.context_mask[rows][..., :num_k],
    )

  def _gather(self) -> Callable[[Graded, int], Gathered]:
    """How rollouts are shown to a teacher by a method that has none."""
    trainer = self._trainer
    config, tokenizer = trainer.config, trainer.model.tokenizer
    assert config.model and config.rollout
    room = config.rollout.max_context + config.rollout.max_new_tokens
    template, thinking = trainer.task.teacher_template, config.model.thinking
    words, _ = encode_context(
      tokenizer, template, '', '', room, thinking=thinking
    )
    shown = Demonstrations(max_context=room + len(words))
    return demonstrated(config, shown, trainer.task, tokenizer)
