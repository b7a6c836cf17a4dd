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

from sdjax.report import runs as runs_lib
from sdjax.report import page

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
  groups: Sequence[runs_lib.Group],
  questions: int | None = None,
  budget: int = BUDGET,
) -> tuple[dict[str, Any], int]:
  """Packs the runs' rollouts; texts that recur stand once.

  Args:
    groups: the methods.
    questions: of each step and run that are kept; None: all logged.
    budget: bytes, about, of the JSON.

  Returns:
    `methods`, `texts`, `asked` and `rows`, and the number of rollouts left
    out. Of `asked`, each is a question that was asked in a step: method,
    seed, step, question's id, question (a place in `texts`), and of all its
    rollouts, those left out as well, how many there are, how many are right,
    and how many different solutions these are (None when not known). Each
    row is a place in `asked`, sample, answer, whether it is correct, reason,
    reward, concepts, demonstrations (places in `texts`).
  """
  texts: dict[str, int] = {}
  asked: list[list[Any]] = []
  rows: list[list[Any]] = []
  left_out = 0
  share = budget / max(sum(len(one.runs) for one in groups), 1)
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
  packed = {
    'methods': [one.label for one in groups],
    'texts': list(texts),
    'asked': asked,
    'rows': rows,
  }
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


def section(
  groups: Sequence[runs_lib.Group], questions: int | None = None
) -> str:
  """Returns the browser as a part of the page; '' without any rollout.

  Args:
    groups: the methods.
    questions: of each step and run that are kept; None: all logged.
  """
  packed, left_out = collect(groups, questions)
  if not packed['rows'] and not left_out:
    return ''
  note = ''
  if left_out:
    note = (
      f' {left_out} of {left_out + len(packed["rows"])} are left out to keep '
      'the page small; <code>rollouts.jsonl</code> has them.'
    )
  return page.section(
    'rollouts',
    'Rollouts',
    'All rollouts that were logged of the first and of the last step, by '
    'question, with verdicts and with what the teacher was shown beside each. '
    'The '
    f'page&rsquo;s address follows the filters.{note}',
    f'{_FILTERS}<div id="found"></div><div id="list"></div>'
    '<button id="more" hidden>show more</button>'
    '<noscript>The browser needs JavaScript.</noscript>'
    f'<script type="application/json" id="data">{to_json(packed)}</script>'
    f'<script>{_SCRIPT}</script>',
  )


_FILTERS = """
<div class="filters">
<label>method<select id="f-method"></select></label>
<label>step<select id="f-step"></select></label>
<label>verdict<select id="f-verdict"></select></label>
<label>concept<select id="f-concept"></select></label>
<label>text<input id="f-text" type="search" placeholder="in question or answer">
</label>
<button id="clear">clear</button>
</div>"""

_SCRIPT = """
(() => {
const data = JSON.parse(document.getElementById('data').textContent);
const [METHOD, SEED, STEP, ID, QUESTION, ALL, RIGHT, SOLUTIONS] =
  Array(8).keys();
const [ASKED, SAMPLE, ANSWER, CORRECT, REASON, REWARD, CONCEPTS, SHOWN] =
  Array(8).keys();
const names = ['method', 'step', 'verdict', 'concept', 'text'];
const field = name => document.getElementById('f-' + name);
const at = id => document.getElementById(id);
const distinct = values => [...new Set(values)];
const seeds = new Set(data.asked.map(a => a[METHOD] + ' ' + a[SEED])).size >
  new Set(data.asked.map(a => a[METHOD])).size;
const choices = {
  method: distinct(data.asked.map(a => data.methods[a[METHOD]])),
  step: distinct(data.asked.map(a => String(a[STEP])))
    .sort((a, b) => a - b),
  verdict: ['correct', 'wrong',
    ...distinct(data.rows.map(r => r[REASON])).filter(x => x &&
      x !== 'correct' && x !== 'wrong').sort()],
  concept: distinct(data.rows.flatMap(r => r[CONCEPTS])).sort(),
};
for (const [name, values] of Object.entries(choices)) {
  field(name).append(new Option('all', ''),
    ...values.map(value => new Option(value, value)));
}
const PAGE = 12;
let found = [], shown = 0;

function element(tag, kind, text) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  // As text, never as HTML: all of it was written by a model.
  if (text !== undefined) made.textContent = text;
  return made;
}

function count(number, noun) {
  return number + ' ' + noun + (number === 1 ? '' : 's');
}

function summary(asked) {
  const right = asked[RIGHT] + ' of ' + asked[ALL] + ' right';
  return asked[SOLUTIONS] === null || !asked[RIGHT] ? right :
    right + ', ' + count(asked[SOLUTIONS], 'solution');
}

function rollout(row, times) {
  const box = element('div', 'roll');
  box.append(
    element('span', row[CORRECT] ? 'right' : 'wrong',
      row[CORRECT] ? 'correct' : row[REASON] || 'wrong'),
    ' ', element('code', '', row[ANSWER]));
  const facts = [...row[CONCEPTS]];
  if (row[REWARD] !== null) facts.unshift('reward ' + +row[REWARD].toFixed(3));
  if (times > 1) facts.unshift(times + ' times');
  if (facts.length) {
    box.append(' ', element('span', 'n', facts.join(' \\u00b7 ')));
  }
  for (const place of row[SHOWN]) {
    const line = element('p');
    line.append(element('span', '', 'shown to the teacher'), ' ',
      data.texts[place]);
    box.append(line);
  }
  return box;
}

function render([place, rows]) {
  const asked = data.asked[place];
  const box = element('div', 'ask'), side = element('div', 'm');
  const body = element('div');
  side.append(element('b', '', data.methods[asked[METHOD]]),
    element('div', '', (seeds ? 'seed ' + asked[SEED] + ', ' : '') +
      'step ' + asked[STEP]),
    element('div', '', 'question ' + asked[ID]));
  const question = element('div', 'q', data.texts[asked[QUESTION]]);
  question.title = 'click for all of it';
  question.onclick = () => question.classList.toggle('o');
  body.append(element('div', 's', summary(asked)), question);
  // What is the same in all but its number is shown once.
  const alike = new Map();
  for (const row of rows) {
    const key = JSON.stringify(row.slice(ANSWER));
    alike.set(key, [row, (alike.get(key)?.[1] ?? 0) + 1]);
  }
  for (const [row, times] of alike.values()) body.append(rollout(row, times));
  box.append(side, body);
  return box;
}

function more() {
  const next = found.slice(shown, shown + PAGE);
  at('list').append(...next.map(render));
  shown += next.length;
  at('more').hidden = shown >= found.length;
}

function passes(row, want) {
  const asked = data.asked[row[ASKED]];
  if (want.method && data.methods[asked[METHOD]] !== want.method) return false;
  if (want.step && String(asked[STEP]) !== want.step) return false;
  const verdict = row[CORRECT] ? 'correct' : 'wrong';
  if (want.verdict && ![verdict, row[REASON]].includes(want.verdict)) {
    return false;
  }
  if (want.concept && !row[CONCEPTS].includes(want.concept)) return false;
  if (!want.text) return true;
  const text = [data.texts[asked[QUESTION]], row[ANSWER],
    ...row[SHOWN].map(place => data.texts[place])].join('\\n');
  return text.toLowerCase().includes(want.text.toLowerCase());
}

function update() {
  const want = Object.fromEntries(names.map(n => [n, field(n).value]));
  const rows = data.rows.filter(row => passes(row, want));
  const right = rows.filter(row => row[CORRECT]).length;
  at('found').textContent = rows.length + ' of ' + data.rows.length +
    ' rollouts, ' + right + ' correct';
  const asked = new Map();
  for (const row of rows) {
    if (!asked.has(row[ASKED])) asked.set(row[ASKED], []);
    asked.get(row[ASKED]).push(row);
  }
  found = [...asked];
  at('list').replaceChildren();
  shown = 0;
  more();
}

function write() {
  const set = names.filter(n => field(n).value).map(n => [n, field(n).value]);
  const hash = set.length ? '#' + new URLSearchParams(set) : '#rollouts';
  // Offline pages have no history to change in some browsers.
  try { history.replaceState(null, '', hash); } catch { }
}

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  const any = names.some(name => given.has(name));
  for (const name of names) {
    field(name).value = given.get(name) ?? '';
    // A value that no rollout has selects nothing: show all instead.
    if (field(name).selectedIndex === -1) field(name).value = '';
  }
  update();
  if (any) at('rollouts').scrollIntoView();
}

for (const name of names) {
  field(name).addEventListener('input', () => { write(); update(); });
}
at('clear').onclick = () => {
  for (const name of names) field(name).value = '';
  write();
  update();
};
at('more').onclick = more;
addEventListener('hashchange', read);
read();
})();
"""
