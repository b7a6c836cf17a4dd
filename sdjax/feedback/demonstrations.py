"""What self-distillation gathers: which correct answers each rollout is shown.

Mirror image of `sdjax.feedback.rewards`.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdjax.config.check_method import check_template
from sdjax.config.method import PEER_STRATEGIES
from sdjax.data.context import QUESTION, encode_context, opens_thinking
from sdjax.feedback.grading import Graded, group_size
from sdjax.models.tokenizer import strip_thinking
from sdjax.tasks.base import Question, Verdict
from sdjax.types import Evidence, Gathered


def choose(
  answers: Sequence[str],
  correct: Sequence[bool],
  own: int,
  *,
  strategy: str,
  count: int,
  rng: np.random.Generator,
  exclude_self: bool = True,
  exclude_same_text: bool = False,
  solutions: Sequence[str] | None = None,
) -> tuple[str, ...]:
  """Chooses the correct peers that one rollout is shown.

  Args:
    answers: the group's G texts.
    correct: whether each is correct.
    own: which of them is the rollout itself.
    strategy: `uniform`: each correct peer is equally likely; `first`: the
      first ones in the group; `most_different`: those that share the smallest
      part of their words with the rollout, ties at random; `balanced`: each
      solution among the correct peers is equally likely, however many peers
      found it, and all are shown before one is shown twice.
    count: K; fewer are returned when the correct peers have fewer distinct
      texts.
    rng: for the strategies that draw.
    exclude_self: a rollout is never shown itself (a peer with the same text
      may be).
    exclude_same_text: nor a peer with its own text.
    solutions: G identities of what the answers solve the question by, for
      `balanced`; None: each text is a solution of its own.

  Returns:
    At most K distinct texts; empty when no rollout that may be shown is
    correct.

  Raises:
    ValueError: for another strategy.
  """
  if strategy not in PEER_STRATEGIES:
    raise ValueError(
      f'strategy={strategy!r} is not one of {", ".join(PEER_STRATEGIES)}.'
    )
  peers = [
    g
    for g, right in enumerate(correct)
    if right
    and not (exclude_self and g == own)
    and not (exclude_same_text and answers[g] == answers[own])
  ]
  if strategy != 'first':
    peers = [peers[i] for i in rng.permutation(len(peers))]
  texts = list(dict.fromkeys(answers[g] for g in peers))
  if strategy == 'most_different':
    words = set(answers[own].split())
    texts.sort(key=lambda text: _overlap(words, set(text.split())))
  elif strategy == 'balanced':
    of = dict(zip(answers, solutions or answers, strict=True))
    turn, rounds = {}, collections.Counter()
    for text in texts:
      turn[text] = rounds[of[text]]
      rounds[of[text]] += 1
    # Which solution comes first must not follow how many peers found it.
    order = sorted(rounds)
    lot = dict(zip(order, rng.permutation(len(order)), strict=True))
    texts.sort(key=lambda text: (turn[text], lot[of[text]]))
  return tuple(texts[:count])


def draw_distinct(
  answers: Sequence[str], count: int, rng: np.random.Generator
) -> tuple[str, ...]:
  """Draws distinct texts by how often each is there.

  Args:
    answers: texts, which may repeat.
    count: K.
    rng: the source of randomness.

  Returns:
    K texts, or all where there are fewer: each was drawn, among those not yet
    drawn, in proportion to its number.
  """
  # The texts of a random order of all answers, each at its first place.
  shuffled = (answers[int(i)] for i in rng.permutation(len(answers)))
  return tuple(dict.fromkeys(shuffled))[:count]


def _overlap(a: set[str], b: set[str]) -> float:
  """Jaccard index of two sets of words."""
  return len(a & b) / max(len(a | b), 1)


def context_buckets(num_contexts: int) -> list[int]:
  """The numbers of contexts a question is padded to: powers of two.

  Args:
    num_contexts: the most distinct demonstrations a question can have.

  Returns:
    Rising sizes, the last at least `num_contexts`.
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
  *,
  strategy: str,
  count: int,
  seed: int,
  exclude_self: bool = True,
  exclude_same_text: bool = False,
  contrast: int = 0,
  feedback: str = 'never',
  given: Callable[[Question], Sequence[str]] | None = None,
  opened: bool = False,
) -> list[list[list[Shown]]]:
  """Chooses what each rollout's teachers are shown.

  An answer is shown without its thinking; one that is nothing else is not
  shown.

  Args:
    graded: a batch of graded rollouts.
    step: enters the draw.
    strategy: see `choose`; `none` shows no answer.
    count: K.
    seed: the run's seed.
    exclude_self: see `choose`.
    exclude_same_text: see `choose`.
    contrast: wrong peers that are shown as well.
    feedback: whether feedback on the rollout itself is shown: `never`,
      `without_peer` (where there is no answer to show) or `always`.
    given: answers to a question that no rollout gave, to be shown in place
      of the peers'; each rollout sees K distinct texts of them, drawn one
      after another, each in proportion to how often it is there.
    opened: whether the rollouts began inside a thinking block.

  Returns:
    Q lists of G lists of at most `count` + `contrast`, the wrong ones last.
  """
  out = []
  for question, verdicts, answers in zip(
    graded.questions, graded.verdicts, graded.answers, strict=True
  ):
    said = [strip_thinking(answer, opened) for answer in answers]
    right = [bool(v.correct and x) for v, x in zip(verdicts, said, strict=True)]
    wrong = [
      bool(x) and not v.correct for v, x in zip(verdicts, said, strict=True)
    ]
    row = []
    for g, verdict in enumerate(verdicts):
      rng = np.random.default_rng([seed, step, question.question_id, g])
      if strategy == 'none':
        texts = ()
      elif given is not None:
        texts = draw_distinct(given(question), count, rng)
      else:
        texts = choose(
          said,
          right,
          g,
          strategy=strategy,
          count=count,
          rng=rng,
          exclude_self=exclude_self,
          exclude_same_text=exclude_same_text,
          solutions=[
            v.solution or x for v, x in zip(verdicts, said, strict=True)
          ],
        )
      told = verdict.feedback or None
      if feedback == 'never' or feedback == 'without_peer' and texts:
        told = None
      cells = [Shown(text, told) for text in texts]
      if not texts and told is not None:
        cells = [Shown(feedback=told)]
      if contrast:
        cells += [
          Shown(text, wrong=True)
          for text in choose(
            said, wrong, g, strategy='uniform', count=contrast, rng=rng
          )
        ]
      row.append(cells)
    out.append(row)
  return out


def gather(
  graded: Graded,
  step: int,
  *,
  tokenizer: Any,
  templates: Templates,
  max_context: int,
  count: int,
  contrast: int = 0,
  thinking: bool = False,
  **choice: Any,
) -> Gathered:
  """Chooses every rollout's demonstrations and builds the teacher's contexts.

  Rollouts of a question that are shown the same share one context.

  Args:
    graded: a batch of graded rollouts.
    step: enters the draw.
    tokenizer: of the model.
    templates: how the teacher is asked.
    max_context: C, the widest context; a longer one loses the end of what
      is shown.
    count: K, right answers.
    contrast: wrong ones, whose contexts come last.
    thinking: what the chat template is told as `enable_thinking`.
    **choice: see `assign`.

  Returns:
    Contexts and assignments. A rollout that is shown nothing is masked.
  """
  num_q, num_g = len(graded.questions), len(graded.answers[0])
  cells = assign(graded, step, count=count, contrast=contrast, **choice)
  distinct = [list(dict.fromkeys(x for c in row for x in c)) for row in cells]
  widest = max(1, *map(len, distinct))
  num_e = next(e for e in context_buckets(widest) if e >= widest)
  num_k = count + contrast
  ids_QEC = np.full((num_q, num_e, max_context), 0, np.int32)
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

  own_QG = _own_texts(graded, cells, choice.get('opened', False))
  success_Q = graded.correct.any(axis=1)
  taught_QG = mask_QGK[..., :count].any(axis=-1)
  number = len(
    [x for row in distinct for x in row if x.demonstration and not x.wrong]
  )
  told = sum(x.feedback is not None for row in cells for c in row for x in c)
  metrics = {
    'success_groups': float(success_Q.mean()),
    'demonstrated': float(taught_QG.mean()),
    'distinct_demonstrations': number / max(int(success_Q.sum()), 1),
    'cut_demonstrations': float(cut),
    # Of the correct rollouts; they can learn nothing but to repeat themselves.
    'shown_own_text': float(own_QG.sum() / max(int(graded.correct.sum()), 1)),
  }
  if choice.get('feedback', 'never') != 'never':
    metrics['with_feedback'] = told / (num_q * num_g)
  return Gathered(
    evidence=Evidence(
      correct=graded.correct,
      context_ids=ids_QEC,
      context_length=length_QE,
      context_index=index_QGK,
      context_mask=mask_QGK,
    ),
    shown=[[tuple(x.text() for x in c) for c in row] for row in cells],
    useful=np.any(taught_QG, axis=1),
    metrics=metrics,
  )


def _own_texts(
  graded: Graded, cells: Sequence[Sequence[Sequence[Shown]]], opened: bool
) -> np.ndarray:
  """Bool [Q, G]: correct rollouts that are shown their own text as right."""
  return np.array(
    [
      [
        v.correct
        and strip_thinking(answer, opened)
        in [x.demonstration for x in cell if not x.wrong]
        for v, answer, cell in zip(verdicts, answers, row, strict=True)
      ]
      for verdicts, answers, row in zip(
        graded.verdicts, graded.answers, cells, strict=True
      )
    ],
    bool,
  )


def demonstrate(
  tokenizer: Any,
  questions: Sequence[str],
  answers: Sequence[Sequence[str]],
  correct: Any,
  template: str,
  *,
  max_context: int,
  strategy: str = 'uniform',
  count: int = 1,
  exclude_self: bool = True,
  exclude_same_text: bool = False,
  seed: int = 0,
  step: int = 0,
  thinking: bool = False,
) -> Evidence:
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
    strategy: see `choose`; so the following.
    count: K.
    exclude_self: whether a rollout is never shown itself.
    exclude_same_text: nor a peer with its own text.
    seed: of the draw.
    step: of training: enters the draw.
    thinking: what a chat template is told as `enable_thinking`.

  Returns:
    Host arrays: the contexts, who is scored under which, and `correct`. The
    number of contexts of a question is a power of 2.

  Raises:
    ValueError: when shapes do not fit, the template lacks a field or holds it
      twice, or there is no such strategy.
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
    tokenizer=tokenizer,
    templates=Templates(template),
    max_context=max_context,
    strategy=strategy,
    count=count,
    exclude_self=exclude_self,
    exclude_same_text=exclude_same_text,
    seed=seed,
    thinking=thinking,
    opened=opens_thinking(tokenizer, QUESTION, thinking),
  ).evidence
