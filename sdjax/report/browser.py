"""All logged rollouts of the first and the last step, to be searched.

The page holds them as JSON and shows those that pass the filters by question,
some at a time. The filters stand in the page's address:
`index.html#verdict=wrong` is a link to the wrong ones.
"""

import itertools
import json
import operator
from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from sdjax.report import page
from sdjax.report import runs as runs_lib

BUDGET = 1_600_000
"""Bytes of the page that rollouts may take, shared by the runs alike."""


def to_json(value: Any) -> str:
  """Returns JSON that can stand in a `<script>` element whatever it holds."""
  text = json.dumps(value, ensure_ascii=False, separators=(',', ':'))
  # `</script>`, `<!--`, and two line ends that old browsers stumble on.
  for char in '<>&\u2028\u2029':
    text = text.replace(char, f'\\u{ord(char):04x}')
  return text


def collect(
  groups: runs_lib.Groups,
  questions: int | None = None,
  budget: int = BUDGET,
) -> tuple[dict[str, Any], int]:
  """Packs the runs' rollouts into about `budget` bytes of JSON.

  Returns `methods`, `texts`, where what recurs stands once, `asked` and `rows`,
  and the number of rollouts left out. Of `asked`, each is a question that was
  asked in a step: method, seed, step, question's id, question (a place in
  `texts`), and of all its rollouts, those left out as well, how many there are,
  how many are right, and how many different solutions these are (None when not
  known). Each row is a place in `asked`, sample, answer, whether it is correct,
  reason, reward, concepts, demonstrations (places in `texts`). Without
  `questions` those of each step and run are all kept.
  """
  texts: dict[str, int] = {}
  asked: list[list[Any]] = []
  rows: list[list[Any]] = []
  left_out = 0
  share = budget / max(len(runs_lib.everyone(groups).runs), 1)
  for place, one in enumerate(groups):
    for run in one.runs:
      spent = 0.0
      counts = _counts(run.rollouts)
      places: dict[Key, int] = {}
      kept: list[tuple[int, list[Any]]] = []
      for order, record in _in_turn(run.rollouts):
        key = _key(record)
        of_step = sum(known[0] == key[0] for known in places)
        if questions is not None and key not in places and of_step >= questions:
          left_out += 1
          continue
        known = len(texts)
        head = []
        if key not in places:
          question = texts.setdefault(key[2], len(texts))
          head = [place, run.seed, *key[:2], question, *counts[key]]
        row = _row(record, places.get(key, len(asked)), texts)
        new = list(texts)[known:]
        size = len(to_json([head, row, new]).encode(errors='replace'))
        if spent + size > share:
          for text in new:
            del texts[text]
          left_out += 1
          continue
        spent += size
        if head:
          places[key] = len(asked)
          asked.append(head)
        kept.append((order, row))
      rows += [row for _, row in sorted(kept, key=operator.itemgetter(0))]
  methods, known = [one.label for one in groups], list(texts)
  packed = {'methods': methods, 'texts': known, 'asked': asked, 'rows': rows}
  return packed, left_out


Key = tuple[Any, Any, str]
"""Step, question's id and text: what the rollouts of a question share."""


def _key(record: dict[str, Any]) -> Key:
  question = page.cut(record.get('question', ''))
  return record.get('step'), record.get('question_id'), question


def _counts(
  records: Sequence[dict[str, Any]],
) -> dict[Key, tuple[int, int, int | None]]:
  """Counts the rollouts of each question, the right ones, their solutions."""
  found: dict[Key, list[dict[str, Any]]] = {}
  for record in records:
    found.setdefault(_key(record), []).append(record)
  counts = {}
  for key, its in found.items():
    right = [record.get('solution') for record in its if record.get('correct')]
    told = all(isinstance(name, (str, int)) and name != '' for name in right)
    counts[key] = len(its), len(right), len(set(right)) if told else None
  return counts


def _in_turn(
  records: Sequence[dict[str, Any]],
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields places and records, of each step one in turn.

  What is left out for want of room is then of all steps alike.
  """
  of_step: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
  for place, record in enumerate(records):
    of_step.setdefault(record.get('step'), []).append((place, record))
  for turn in itertools.zip_longest(*of_step.values()):
    yield from filter(None, turn)


def _row(
  record: dict[str, Any], place: int, texts: dict[str, int]
) -> list[Any]:
  reward = record.get('reward')
  return [
    place,
    record.get('sample'),
    page.cut(record.get('answer', '')),
    int(bool(record.get('correct'))),
    page.cut(record.get('reason') or ''),
    reward if isinstance(reward, (int, float)) else None,
    [page.cut(concept) for concept in record.get('concepts') or ()],
    [
      texts.setdefault(page.cut(text), len(texts))
      for text in record.get('demonstrations') or ()
    ],
  ]


def section(groups: runs_lib.Groups, questions: int | None = None) -> str:
  """Returns the browser as a part of the page; '' without any rollout."""
  packed, left_out = collect(groups, questions)
  if not packed['rows'] and not left_out:
    return ''
  return page.render(
    'rollouts.html',
    data=Markup(to_json(packed)),
    shown=len(packed['rows']),
    left_out=left_out,
  )
