"""The rollouts in a report's page, and what filters them."""

import json
import re
import shutil
import subprocess

import pytest
from test_report import EVIL, group

from sdjax.report import browser, page, runs


def rollout(**changes):
  return {
    'step': 1,
    'question_id': 5,
    'sample': 0,
    'question': 'asked',
    'answer': 'said',
    'correct': True,
    'reason': '',
    'reward': 1.0,
    'concepts': ['fruit'],
    'solution': '',
    'demonstrations': ['asked', 'shown'],
    **changes,
  }


def with_rollouts(tmp_path, *records):
  run = runs.Run(tmp_path, 'sd', seed=3, rollouts=list(records))
  return [group('sd', run)]


def test_rollouts_are_packed(tmp_path):
  wrong = rollout(
    sample=1, correct=False, reason='wrong_end', reward=None, concepts=None,
    demonstrations=None,
  )  # fmt: skip
  packed, left_out = browser.collect(with_rollouts(tmp_path, rollout(), wrong))
  assert left_out == 0
  assert packed == {
    'methods': ['sd'],
    'texts': ['asked', 'shown'],
    # Method, seed, step, id, text; of two one is right, of no known solution.
    'asked': [[0, 3, 1, 5, 0, 2, 1, None]],
    'rows': [
      [0, 0, 'said', 1, '', 1.0, ['fruit'], [0, 1]],
      [0, 1, 'said', 0, 'wrong_end', None, [], []],
    ],
  }


def test_what_became_of_a_question_is_counted_over_all_its_rollouts(tmp_path):
  records = [
    rollout(solution='a'),
    rollout(solution='a', sample=1),
    rollout(solution='b', sample=2),
    rollout(solution='', sample=3, correct=False),
    rollout(step=9, correct=False),
    rollout(question='another', solution=4),
  ]
  groups = with_rollouts(tmp_path, *records)
  heads = [
    [0, 3, 1, 5, 0, 4, 3, 2],
    [0, 3, 9, 5, 0, 1, 0, 0],
    [0, 3, 1, 5, 2, 1, 1, 1],
  ]
  packed, _ = browser.collect(groups)
  assert packed['asked'] == heads
  assert [row[0] for row in packed['rows']] == [0, 0, 0, 0, 1, 2]
  # Also over those for which there is no room.
  packed, left_out = browser.collect(groups, budget=170)
  assert left_out >= 3 and packed['asked'][0] == heads[0]


def test_rollouts_are_limited_by_questions_and_by_size(tmp_path):
  records = [
    rollout(step=step, question_id=q, question='x' * 500 + str(q))
    for step in (0, 9)
    for q in range(4)
    for _ in range(2)
  ]
  groups = with_rollouts(tmp_path, *records)
  packed, left_out = browser.collect(groups, questions=1)
  assert left_out == 12 and [a[2:4] for a in packed['asked']] == [
    [0, 0],
    [9, 0],
  ]
  assert [row[0] for row in packed['rows']] == [0, 0, 1, 1]
  packed, left_out = browser.collect(groups, budget=1500)
  assert 0 < left_out < 16 and left_out + len(packed['rows']) == 16
  assert len(browser.to_json(packed)) < 1700
  assert {row[0] for row in packed['rows']} == set(range(len(packed['asked'])))
  places = {head[4] for head in packed['asked']}
  assert places <= set(range(len(packed['texts'])))
  assert browser.section(with_rollouts(tmp_path)) == ''


@pytest.mark.parametrize('text', ['</script>', '<!--', EVIL, '\u2028', 'é🙂'])
def test_what_stands_in_a_script_cannot_end_it(text):
  packed = browser.to_json({'a': [text]})
  assert not set('<>&\u2028') & set(packed)
  assert json.loads(packed) == {'a': [text]}


BROWSER = shutil.which('chromium') or shutil.which('google-chrome')


def in_a_browser(file, hash_, tmp_path):
  """The text of the page's list after its scripts ran, and what they said."""
  done = subprocess.run(
    [
      str(BROWSER), '--headless', '--no-sandbox', '--disable-gpu',
      f'--user-data-dir={tmp_path / "profile"}', '--enable-logging=stderr',
      '--virtual-time-budget=3000', '--dump-dom', f'file://{file}#{hash_}',
    ],
    capture_output=True, text=True, check=True, timeout=120,
  )  # fmt: skip
  (found,) = re.findall(r'id="found">([^<]*)<', done.stdout)
  shown = done.stdout[done.stdout.index('id="list"') :]
  shown = shown[: shown.index('<script')]
  return found, shown, 'CONSOLE' in done.stderr


@pytest.mark.skipif(not BROWSER, reason='needs a browser')
@pytest.mark.parametrize(
  ('hash_', 'found'),
  [
    ('', '6 of 6 rollouts, 3 correct'),
    ('verdict=wrong', '3 of 6 rollouts, 0 correct'),
    ('verdict=not_an_edge', '1 of 6 rollouts, 0 correct'),
    ('concept=fish&verdict=correct', '2 of 6 rollouts, 2 correct'),
    ('method=other', '1 of 6 rollouts, 0 correct'),
    ('step=9&text=said+LOUD', '1 of 6 rollouts, 1 correct'),
    ('text=nowhere', '0 of 6 rollouts, 0 correct'),
    ('method=unknown', '6 of 6 rollouts, 3 correct'),
  ],
)
def test_the_filters_follow_the_address(tmp_path, hash_, found):
  records = [
    rollout(concepts=['fish'], demonstrations=['x']),
    rollout(concepts=['fish'], answer=EVIL, demonstrations=[EVIL]),
    rollout(step=9, answer='Said loud'),
    rollout(correct=False, reason='not_an_edge'),
    rollout(correct=False, reason='wrong_end', concepts=['fish']),
  ]
  one = with_rollouts(tmp_path, *records)
  two = runs.Run(tmp_path, 'x', rollouts=[rollout(correct=False)])
  file = tmp_path / 'page.html'
  text = browser.section([*one, group('other', two)])
  file.write_text(page.frame('t', '', {'rollouts': text}))
  told_so, shown, complained = in_a_browser(file, hash_, tmp_path)
  assert told_so == found and not complained
  assert shown.count('class="roll"') == int(found[0])
  assert '<script>' not in shown


@pytest.mark.skipif(not BROWSER, reason='needs a browser')
def test_a_question_is_shown_once_with_its_rollouts(tmp_path):
  records = [
    rollout(solution='a', demonstrations=[]),
    rollout(solution='a', demonstrations=[], sample=1),
    rollout(solution='b', answer='other', demonstrations=[], sample=2),
    rollout(correct=False, reason='wrong_end', sample=3),
    rollout(question='elsewhere', question_id=6, solution='a'),
  ]
  file = tmp_path / 'page.html'
  text = browser.section(with_rollouts(tmp_path, *records))
  file.write_text(page.frame('t', '', {'rollouts': text}))
  _, shown, complained = in_a_browser(file, '', tmp_path)
  assert not complained
  assert re.findall(r'class="s">([^<]*)<', shown) == [
    '3 of 4 right, 2 solutions',
    '1 of 1 right, 1 solution',
  ]
  assert re.findall(r'class="q"[^>]*>([^<]*)<', shown) == ['asked', 'elsewhere']
  # Two that are the same stand once.
  assert shown.count('class="roll"') == 4 and shown.count('2 times') == 1
  _, shown, _ = in_a_browser(file, 'verdict=wrong', tmp_path)
  # What became of the question does not depend on the filters.
  assert '3 of 4 right' in shown and shown.count('class="roll"') == 1


@pytest.mark.skipif(not BROWSER, reason='needs a browser')
def test_a_rollout_that_holds_script_stays_text(tmp_path):
  evil = '</script><script>document.title="GONE"</script>' + (
    '<img src=x onerror=document.title="GONE">'
  )
  record = rollout(
    question=evil,
    answer=evil,
    correct=False,
    reason=evil,
    concepts=[evil],
    demonstrations=[evil],
  )
  file = tmp_path / 'page.html'
  text = browser.section(with_rollouts(tmp_path, record))
  file.write_text(page.frame('mine', '', {'rollouts': text}))
  _, shown, complained = in_a_browser(file, '', tmp_path)
  assert not complained and shown.count('GONE') >= 8
  assert '<img' not in shown and '<script' not in shown


def test_what_is_left_out_is_of_both_steps_alike(tmp_path):
  records = [
    rollout(step=step, sample=g, answer=f'{step} {g}' * 20)
    for step in (1, 150)
    for g in range(50)
  ]
  packed, left_out = browser.collect(
    with_rollouts(tmp_path, *records), budget=8000
  )
  steps = [packed['asked'][row[0]][2] for row in packed['rows']]
  assert 20 < len(steps) == 100 - left_out < 80
  assert steps == sorted(steps)
  assert abs(steps.count(1) - steps.count(150)) <= 1
