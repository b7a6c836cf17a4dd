"""Heat maps of what two methods reward: tokens by a teacher, answers by RL."""

import html
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sdjax.report import runs as runs_lib
from sdjax.report import page

BUDGET = 900_000
"""Bytes of the page that heat maps may take, shared by the methods alike."""


def section(groups: Sequence[runs_lib.Group]) -> str:
  """Returns the heat maps as a part of the page; '' when no run has them."""
  shown = [one for one in groups if one.runs[0].credit]
  if not shown:
    return ''
  records = [r for one in shown for r in one.runs[0].credit]
  scale = _scale(records)
  parts = [_method(one, scale, BUDGET // len(shown)) for one in shown]
  caption = (
    'The same rollouts as self-distillation and as RL see them, before the '
    'update of the step. Left: log q(token | demonstration) &minus; log '
    'p(token), in nats, of the teacher, which is the run&rsquo;s own or, '
    'without one, the model itself shown a correct answer. Right: GRPO&rsquo;s '
    'advantage, one number for all tokens of an answer. Point at a token for '
    'its value.'
  )
  return page.section(
    'credit',
    'What each method rewards',
    caption,
    _legend(*scale) + ''.join(parts),
  )


def _scale(records: Sequence[dict[str, Any]]) -> tuple[float, float]:
  """The values that are drawn in full colour, the same for all methods.

  One rare token must not pale all others: of the log-ratios that are not
  close to 0, one in ten is beyond.
  """
  ratios = np.abs([x for r in records for x in _ratios(r)])
  strong = ratios[ratios > 0.1]
  nats = float(np.quantile(strong, 0.9)) if strong.size else 1.0
  advantages = [abs(_number(r.get('advantage'))) for r in records]
  return nats, max(advantages, default=0.0) or 1.0


def _legend(nats: float, advantage: float) -> str:
  def bar(most: float, unit: str) -> str:
    steps = (-1, -0.5, -0.2, 0.2, 0.5, 1)
    return (
      ' '.join(
        f'<u{" class=n" if v < 0 else ""} style="--v:{abs(v)}">'
        f'{v * most:+.1f}</u>'
        for v in steps
      )
      + f' {unit}'
    )

  return (
    f'<p class="scale"><span>teacher: {bar(nats, "nats or beyond")}</span>'
    f'<span>RL: {bar(advantage, "advantage")}</span></p>'
  )


def _method(
  one: runs_lib.Group, scale: tuple[float, float], budget: int
) -> str:
  """Renders a method's first seed, as far as the budget reaches."""
  by_question: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
  for record in one.runs[0].credit:
    at = (record.get('step'), record.get('question_id'))
    by_question.setdefault(at, []).append(record)
  parts, left_out = [], 0
  for place, ((step, question), records) in enumerate(by_question.items()):
    # What one question does not need is the others'.
    share = budget // (len(by_question) - place)
    right = sum(bool(record.get('correct')) for record in records)
    head = (
      f'<details{" open" if not parts else ""}><summary>step '
      f'{page.escape(step)}, question {page.escape(question)}: {right} of '
      f'{len(records)} correct</summary>'
      f'<pre>{page.escape(records[0].get("question", ""))}</pre>'
      '<div class="credit"><span></span><span class="h">teacher</span>'
      '<span class="h">RL</span>'
    )
    spent, kept = len(head), []
    for record in records:
      row = _row(record, scale)
      if spent + len(row) <= share:
        spent += len(row)
        kept.append(row)
    left_out += len(records) - len(kept)
    if kept:
      budget -= spent
      parts.append(f'{head}{"".join(kept)}</div></details>')
  note = ''
  if left_out:
    note = (
      f'<p class="none">{page.count(left_out, "rollout")} left out to '
      'keep the page small.</p>'
    )
  return f'<h3>{page.escape(one.label)}</h3>{"".join(parts)}{note}'


def _row(record: dict[str, Any], scale: tuple[float, float]) -> str:
  tokens = record.get('tokens')
  tokens = [str(t) for t in tokens] if isinstance(tokens, list) else []
  ratios = _ratios(record)
  if len(ratios) == len(tokens):
    teacher = ''.join(_spans(tokens, ratios, scale[0]))
  else:
    teacher = page.NONE
  advantage = _number(record.get('advantage'))
  verdict, word = 'wrong', 'wrong'
  if record.get('correct'):
    verdict, word = 'right', 'correct'
  demonstration = record.get('demonstration') or ''
  shown = (
    f'shown to the teacher: {page.escape(demonstration)}'
    if demonstration
    else 'no correct answer to be shown'
  )
  return (
    f'<div class="d">{shown}</div><span class="{verdict}">{word}</span>'
    f'<div class="tokens">{teacher}</div><div class="tokens a">'
    f'{_span("".join(tokens), advantage, scale[1])}</div>'
  )


def _spans(
  tokens: Sequence[str], values: Sequence[float], most: float
) -> Iterator[str]:
  for token, value in zip(tokens, values, strict=True):
    # What stands before a word is not coloured: the words are told apart.
    word = token.lstrip(' ')
    yield ' ' * (len(token) - len(word)) + (
      _span(word, value, most) if word else ''
    )


def _span(text: str, value: float, most: float) -> str:
  share = round(min(abs(value) / most, 1), 2)
  sign = ' class=n' if value < 0 else ''
  # Not cut: a rollout that is too long is left out as a whole.
  return (
    f'<u{sign} style="--v:{share:g}" title="{value:+.3f}">'
    f'{html.escape(text)}</u>'
  )


def _ratios(record: dict[str, Any]) -> list[float]:
  values = record.get('log_ratio')
  return [_number(x) for x in values] if isinstance(values, list) else []


def _number(value: Any) -> float:
  return float(value) if isinstance(value, (int, float)) else 0.0
