"""What self-distillation gathers: which correct answers each rollout is shown.

Mirror image of `sdjax.rewards`.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.data.context import encode_context
from sdjax.data.tokenizer import THINKING
from sdjax.grading import Graded
from sdjax.tasks.base import Question
from sdjax.types import Evidence, Gathered

_OPEN, _CLOSE = THINKING
_BLOCK = re.compile(f'{_OPEN}.*?{_CLOSE}', re.DOTALL)


def strip_thinking(answer: str, opened: bool = False) -> str:
  """Leaves of an answer what was said, not what was thought.

  Args:
    answer: a completion's text.
    opened: whether its context had already opened a thinking block.

  Returns:
    The text without its thinking blocks: a block that was never closed
    reaches to the end, one that was never opened begins at the start. Empty
    when the answer is nothing but thinking.
  """
  text = (_OPEN if opened else '') + answer
  said = _BLOCK.sub('', text).rpartition(_CLOSE)[2].partition(_OPEN)[0]
  return answer if said == answer else said.strip()


def choose(
  answers: Sequence[str],
  correct: Sequence[bool],
  own: int,
  *,
  strategy: str,
  count: int,
  rng: np.random.Generator,
) -> tuple[str, ...]:
  """Chooses the correct peers that one rollout is shown.

  Args:
    answers: the group's G texts.
    correct: whether each is correct.
    own: which of them is the rollout itself; never shown to itself (a peer
      with the same text may be).
    strategy: `uniform`: each correct peer is equally likely; `first`: the
      first ones in the group; `most_different`: those that share the smallest
      part of their words with the rollout, ties at random.
    count: K; fewer are returned when the correct peers have fewer distinct
      texts.
    rng: for the strategies that draw.

  Returns:
    At most K distinct texts; empty when no other rollout is correct.

  Raises:
    ValueError: for another strategy.
  """
  peers = [
    text
    for g, (text, right) in enumerate(zip(answers, correct, strict=True))
    if right and g != own
  ]
  if strategy not in ('uniform', 'first', 'most_different'):
    raise ValueError(
      f'strategy={strategy!r} is not one of uniform, first, most_different.'
    )
  if strategy != 'first':
    peers = [peers[i] for i in rng.permutation(len(peers))]
  if strategy == 'most_different':
    words = set(answers[own].split())
    peers.sort(key=lambda text: _overlap(words, set(text.split())))
  return tuple(dict.fromkeys(peers))[:count]


def _overlap(a: set[str], b: set[str]) -> float:
  """Jaccard index of two sets of words."""
  return len(a & b) / max(len(a | b), 1)


def read_external(path: str) -> dict[int, list[str]]:
  """Reads demonstrations from outside the run.

  Args:
    path: JSONL, `{"question_id": int, "answer": str}` a line; several lines
      may share a question.

  Returns:
    The answers to each question, without thinking blocks.

  Raises:
    ValueError: naming the line that is not such a record, or the file if it
      cannot be read.
  """
  answers: dict[int, list[str]] = {}
  try:
    lines = Path(path).read_text(encoding='utf-8').splitlines()
  except OSError as error:
    raise ValueError(
      f'method.demonstrations.file={path!r} cannot be read: {error}'
    ) from error
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
      question_id, answer = int(record['question_id']), record['answer']
      if not isinstance(answer, str):
        raise TypeError('answer is not a string')
      answer = strip_thinking(answer)
      if not answer:
        raise ValueError('answer is empty, or nothing but thinking')
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f'{path}, line {number}: expected {{"question_id": int, "answer": '
        f'str}}, got {line[:80]!r} ({error!r})'
      ) from error
    answers.setdefault(question_id, []).append(answer)
  return answers


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


def gather(
  graded: Graded,
  step: int,
  *,
  tokenizer: Any,
  template: str,
  max_context: int,
  strategy: str,
  count: int,
  seed: int,
  given: Callable[[Question], Sequence[str]] | None = None,
  thinking: bool = False,
  opened: bool = False,
) -> Gathered:
  """Chooses every rollout's demonstrations and builds the teacher's contexts.

  Rollouts of a question that are shown the same text share one context. An
  answer is shown without its thinking; one that is nothing else is not shown.

  Args:
    graded: a batch of graded rollouts.
    step: enters the draw.
    tokenizer: of the model.
    template: the teacher's template, with `{question}` and
      `{demonstration}`.
    max_context: C, the widest context; a longer one loses the end of its
      demonstration.
    strategy: see `choose`.
    count: K.
    seed: the run's seed.
    given: answers to a question that no rollout gave, to be shown in place
      of the peers'; each rollout sees K of them, drawn without repetition.
    thinking: what the chat template is told as `enable_thinking`.
    opened: whether the rollouts began inside a thinking block.

  Returns:
    Contexts and assignments. A rollout without a demonstration is masked.
  """
  num_q, num_g = len(graded.questions), len(graded.answers[0])
  shown: list[list[tuple[str, ...]]] = []
  for question, answers, correct in zip(
    graded.questions, graded.answers, graded.correct, strict=True
  ):
    row = []
    said = [strip_thinking(answer, opened) for answer in answers]
    can_serve = [
      bool(right and text) for right, text in zip(correct, said, strict=True)
    ]
    for g in range(num_g):
      rng = np.random.default_rng([seed, step, question.question_id, g])
      if given is not None:
        texts = list(dict.fromkeys(given(question)))
        row.append(tuple(texts[i] for i in rng.permutation(len(texts))[:count]))
      else:
        row.append(
          choose(
            said, can_serve, g, strategy=strategy, count=count, rng=rng
          )
        )
    shown.append(row)

  texts = [list(dict.fromkeys(t for ts in row for t in ts)) for row in shown]
  widest = max(1, *map(len, texts))
  num_e = next(e for e in context_buckets(widest) if e >= widest)
  ids_QEC = np.full((num_q, num_e, max_context), 0, np.int32)
  length_QE = np.ones((num_q, num_e), np.int32)
  index_QGK = np.zeros((num_q, num_g, count), np.int32)
  mask_QGK = np.zeros((num_q, num_g, count), bool)
  cut = 0
  for q, question in enumerate(graded.questions):
    for e, text in enumerate(texts[q]):
      ids, lost = encode_context(
        tokenizer,
        template,
        question.text,
        text,
        max_context,
        thinking=thinking,
      )
      cut += lost > 0
      ids_QEC[q, e, max_context - len(ids) :] = ids
      length_QE[q, e] = len(ids)
    for g in range(num_g):
      for k, text in enumerate(shown[q][g]):
        index_QGK[q, g, k] = texts[q].index(text)
        mask_QGK[q, g, k] = True

  success_Q = graded.correct.any(axis=1)
  distinct = sum(map(len, texts))
  return Gathered(
    evidence=Evidence(
      context_ids=ids_QEC,
      context_length=length_QE,
      context_index=index_QGK,
      context_mask=mask_QGK,
    ),
    shown=shown,
    metrics={
      'success_groups': float(success_Q.mean()),
      'demonstrated': float(mask_QGK.any(axis=-1).mean()),
      'distinct_demonstrations': distinct / max(int(success_Q.sum()), 1),
      'cut_demonstrations': float(cut),
    },
  )
