"""Heat maps of what two methods reward: tokens by a teacher, answers by RL."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from sdjax.report import page
from sdjax.report import runs as runs_lib

BUDGET = 900_000
"""Bytes of the page that heat maps may take, shared by the methods alike."""

_HEAD = 280  # characters of a question's frame in `credit.html`


def section(groups: runs_lib.Groups) -> str:
  """Returns the heat maps as a part of the page; '' when no run has them."""
  shown = [one for one in groups if one.runs[0].credit]
  if not shown:
    return ''
  scale = _scale([r for one in shown for r in one.runs[0].credit])
  return page.render(
    'credit.html',
    nats=scale[0],
    advantage=scale[1],
    methods=[_method(one, scale, BUDGET // len(shown)) for one in shown],
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


def _method(
  one: runs_lib.Group, scale: tuple[float, float], budget: int
) -> dict[str, Any]:
  """Returns a method's first seed by question, as far as the budget reaches."""
  by_question: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
  for record in one.runs[0].credit:
    at = (record.get('step'), record.get('question_id'))
    by_question.setdefault(at, []).append(record)
  questions, left_out = [], 0
  for place, ((step, name), records) in enumerate(by_question.items()):
    # What one question does not need is the others'.
    share = budget // (len(by_question) - place)
    text = page.cut(records[0].get('question', ''))
    spent, rows = len(escape(text)) + _HEAD, []
    for record in records:
      row = _row(record, scale)
      if spent + len(row) <= share:
        spent += len(row)
        rows.append(row)
    left_out += len(records) - len(rows)
    if rows:
      budget -= spent
      questions.append(
        {
          'step': step,
          'id': name,
          'text': text,
          'right': sum(bool(record.get('correct')) for record in records),
          'number': len(records),
          'rows': rows,
        }
      )
  return {'label': one.label, 'questions': questions, 'left_out': left_out}


def _row(record: dict[str, Any], scale: tuple[float, float]) -> Markup:
  tokens = record.get('tokens')
  tokens = [str(t) for t in tokens] if isinstance(tokens, list) else []
  ratios = _ratios(record)
  words = []
  if len(ratios) == len(tokens):
    for token, ratio in zip(tokens, ratios, strict=True):
      word = token.lstrip(' ')
      words.append((' ' * (len(token) - len(word)), word, ratio))
  return page.render(
    'credit_row.html',
    demonstration=record.get('demonstration') or '',
    correct=record.get('correct'),
    words=words,
    answer=''.join(tokens),
    advantage=_number(record.get('advantage')),
    nats=scale[0],
    most=scale[1],
  )


def _ratios(record: dict[str, Any]) -> list[float]:
  values = record.get('log_ratio')
  return [_number(x) for x in values] if isinstance(values, list) else []


def _number(value: Any) -> float:
  return float(value) if isinstance(value, (int, float)) else 0.0
