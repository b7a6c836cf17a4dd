"""What self-distillation gathers: which correct answers each rollout is shown.

Mirror image of `sdjax.feedback.rewards`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdjax.data.context import QUESTION, encode_context, opens_thinking
from sdjax.feedback.grading import Graded, group_size
from sdjax.feedback.strategies import (
  Demonstrations,
  Given,
  Strategy,
  Uniform,
  check_template,
  choose,
  draw_distinct,
)
from sdjax.models.tokenizer import strip_thinking
from sdjax.tasks.base import Question, Verdict
from sdjax.types import Gathered, TeacherContexts


def context_buckets(num_contexts: int) -> list[int]:
  """The numbers of contexts a question is padded to: powers of two.

  They rise; the last is the first that is at least `num_contexts`, the most
  distinct demonstrations a question can have.
  """
  sizes = [1]
  while sizes[-1] < num_contexts:
    sizes.append(2 * sizes[-1])
  return sizes


@dataclasses.dataclass(frozen=True)
class Shown:
  """What one teacher of a rollout is shown.

  Attributes:
    demonstration: an answer, or None.
    feedback: what the environment said of the rollout, or None.
    wrong: the demonstration is a wrong answer, shown for contrast.
  """

  demonstration: str | None = None
  feedback: str | None = None
  wrong: bool = False

  def text(self) -> str:
    """Returns what a person may want to read."""
    parts = [self.demonstration, self.feedback and f'[{self.feedback}]']
    return ('WRONG: ' if self.wrong else '') + ' '.join(filter(None, parts))


@dataclasses.dataclass(frozen=True)
class Templates:
  """How the teacher is asked; see `sdjax.data.context.fill_template`.

  Attributes:
    demonstration: when it is shown an answer.
    feedback: when it is shown feedback.
    both: when it is shown both.
  """

  demonstration: str
  feedback: str = ''
  both: str = ''

  def of(self, shown: Shown) -> str:
    """Returns the template for what is shown."""
    if shown.feedback is None:
      return self.demonstration
    return self.feedback if shown.demonstration is None else self.both


def assign(
  graded: Graded,
  step: int,
  options: Demonstrations,
  *,
  seed: int,
  given: Given | None = None,
  opened: bool = False,
) -> list[list[list[Shown]]]:
  """Chooses what each rollout's teachers are shown.

  An answer is shown without its thinking (which rollouts that are `opened`
  began inside of); one that is nothing else is not shown. What is `given` to a
  question stands in place of the peers' answers, see `draw_distinct`. Returns
  Q lists of G lists of at most `count` + `contrast`, the wrong ones last.
  """
  out = []
  for question, verdicts, answers in zip(
    graded.questions, graded.verdicts, graded.answers, strict=True
  ):
    said = [strip_thinking(answer, opened) for answer in answers]
    pairs = list(zip(verdicts, said, strict=True))
    right = [bool(v.correct and x) for v, x in pairs]
    wrong = [bool(x) and not v.correct for v, x in pairs]
    solutions = [v.solution or x for v, x in pairs]
    row = []
    for g, verdict in enumerate(verdicts):
      rng = np.random.default_rng([seed, step, question.question_id, g])
      if not options.strategy.shows:
        texts = ()
      elif given is not None:
        texts = draw_distinct(given(question), options.count, rng)
      else:
        texts = choose(
          said, right, g, options.strategy, options.count, rng, solutions
        )
      told = verdict.feedback or None
      if options.feedback == 'never' or (
        options.feedback == 'without_peer' and texts
      ):
        told = None
      cells = [Shown(text, told) for text in texts]
      if not texts and told is not None:
        cells = [Shown(feedback=told)]
      if options.contrast:
        cells += [
          Shown(text, wrong=True)
          for text in choose(said, wrong, g, Uniform(), options.contrast, rng)
        ]
      row.append(cells)
    out.append(row)
  return out


def gather(
  graded: Graded,
  step: int,
  options: Demonstrations,
  *,
  tokenizer: Any,
  templates: Templates,
  seed: int,
  given: Given | None = None,
  thinking: bool = False,
  opened: bool = False,
) -> Gathered:
  """Chooses every rollout's demonstrations and builds the teacher's contexts.

  Rollouts of a question that are shown the same share one context; one that
  is shown nothing is masked. A context that is too long loses the end of what
  is shown. The chat template is told `thinking` as `enable_thinking`; for the
  others see `assign`.
  """
  count, max_context = options.count, options.max_context
  num_q, num_g = len(graded.questions), len(graded.answers[0])
  cells = assign(graded, step, options, seed=seed, given=given, opened=opened)
  distinct = [list(dict.fromkeys(x for c in row for x in c)) for row in cells]
  num_e = context_buckets(max(map(len, distinct)))[-1]
  num_k = count + options.contrast
  ids_QEC = np.zeros((num_q, num_e, max_context), np.int32)
  length_QE = np.ones((num_q, num_e), np.int32)
  index_QGK = np.zeros((num_q, num_g, num_k), np.int32)
  mask_QGK = np.zeros((num_q, num_g, num_k), bool)
  cut = 0
  for q, question in enumerate(graded.questions):
    for e, shown in enumerate(distinct[q]):
      ids, lost = encode_context(
        tokenizer,
        templates.of(shown),
        question.text,
        shown.demonstration,
        max_context,
        feedback=shown.feedback,
        thinking=thinking,
      )
      cut += lost > 0
      ids_QEC[q, e, max_context - len(ids) :] = ids
      length_QE[q, e] = len(ids)
    for g in range(num_g):
      rights = [x for x in cells[q][g] if not x.wrong]
      wrongs = [x for x in cells[q][g] if x.wrong]
      for k, shown in [*enumerate(rights), *enumerate(wrongs, count)]:
        index_QGK[q, g, k] = distinct[q].index(shown)
        mask_QGK[q, g, k] = True

  own_QG = _own_texts(graded, cells, opened)
  success_Q = graded.correct.any(axis=1)
  taught_QG = mask_QGK[..., :count].any(axis=-1)
  right = [
    x for row in distinct for x in row if x.demonstration and not x.wrong
  ]
  told = sum(x.feedback is not None for row in cells for c in row for x in c)
  metrics = {
    'success_groups': float(success_Q.mean()),
    'demonstrated': float(taught_QG.mean()),
    'distinct_demonstrations': len(right) / max(int(success_Q.sum()), 1),
    'cut_demonstrations': float(cut),
    # Of the correct rollouts; they can learn nothing but to repeat themselves.
    'shown_own_text': float(own_QG.sum() / max(int(graded.correct.sum()), 1)),
  }
  if options.feedback != 'never':
    metrics['with_feedback'] = told / (num_q * num_g)
  return Gathered(
    evidence=TeacherContexts(
      context_ids=ids_QEC,
      context_length=length_QE,
      context_index=index_QGK,
      context_mask=mask_QGK,
      correct=graded.correct,
    ),
    shown=[[tuple(x.text() for x in c) for c in row] for row in cells],
    useful=np.any(taught_QG, axis=1),
    metrics=metrics,
  )


def _own_texts(
  graded: Graded, cells: Sequence[Sequence[Sequence[Shown]]], opened: bool
) -> np.ndarray:
  """Bool [Q, G]: correct rollouts that are shown their own text as right."""

  def own(answer: str, cell: Sequence[Shown]) -> bool:
    shown = [x.demonstration for x in cell if not x.wrong]
    return strip_thinking(answer, opened) in shown

  rows = zip(graded.answers, cells, strict=True)
  return graded.correct & [list(map(own, *row)) for row in rows]


def demonstrate(
  tokenizer: Any,
  questions: Sequence[str],
  answers: Sequence[Sequence[str]],
  correct: Any,
  template: str,
  *,
  max_context: int,
  strategy: Strategy | str = Uniform(),  # noqa: B008
  count: int = 1,
  seed: int = 0,
  step: int = 0,
  thinking: bool = False,
) -> TeacherContexts:
  """Makes the evidence of self-distillation from texts, in one call.

  Args:
    tokenizer: of the model.
    questions: Q texts, as they stand in the template.
    answers: Q lists of G texts, the rollouts; see `decode_answers`.
    correct: bool [Q, G], or lists, which of them are right.
    template: the teacher's question; `{question}` and `{demonstration}` are
      replaced, once each. It has to end as the student's question does.
    max_context: C, the width of the contexts in tokens; a longer one loses
      the end of what is shown.
    strategy: how correct peers are chosen, or its text.
    count: K, demonstrations a rollout.
    seed: of the draw.
    step: of training: enters the draw.
    thinking: what a chat template is told as `enable_thinking`.

  Returns:
    Host arrays: the contexts, who is scored under which, and `correct`. The
    number of contexts of a question is a power of 2.

  Raises:
    ValueError: when shapes do not fit, or the template lacks a field or holds
      it twice.
  """
  check_template('template', template, ('{question}', '{demonstration}'))
  asked = [Question(q, 'train', text, None) for q, text in enumerate(questions)]
  shape = len(asked), group_size(asked, answers)
  right_QG = np.asarray(correct, bool)
  if right_QG.shape != shape:
    raise ValueError(
      f'correct has shape {right_QG.shape}; it must be {shape}, one for each '
      'answer.'
    )
  graded = Graded(
    questions=asked,
    answers=answers,
    verdicts=[[Verdict(x, float(x)) for x in row] for row in right_QG.tolist()],
    length=np.ones(shape, int),
    finished=np.ones(shape, bool),
  )
  return gather(
    graded,
    step,
    Demonstrations(
      strategy=strategy,  # pyright: ignore[reportArgumentType]
      count=count,
      max_context=max_context,
    ),
    tokenizer=tokenizer,
    templates=Templates(template),
    seed=seed,
    thinking=thinking,
    opened=opens_thinking(tokenizer, QUESTION, thinking),
  ).evidence
