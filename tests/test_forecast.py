"""Forecasts against numbers by hand, a tabular model, and the shipped one."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from models import one_device
from tabular import sequence_distributions, sequence_logp, table_model

from sdjax import main
from sdjax.config import schema as c
from sdjax.config.convert import from_config_dict, replace, to_dict
from sdjax.evaluate import distribution as distribution_lib
from sdjax.evaluate.pass_at_k import pass_at_k
from sdjax.forecast import closed_forms as theory
from sdjax.forecast import dynamics, summary, tables
from sdjax.forecast import run as forecast
from sdjax.forecast.dynamics import AnswerDistribution, Distilling
from sdjax.tasks.base import Question, Verdict
from sdjax.training.run_folder import Workdir

ONCE = Distilling()
SMALL = c.Config(
  mode='forecast',
  task=c.ConceptGraph(train_size=8, eval_size=8),
  eval=c.Eval(
    # Its questions are longer than those the teacher's contexts are made for.
    sets=('larger',),
    during=('larger',),
    num_questions=7,
    num_samples=16,
    batch_questions=4,
  ),
)


def two_solutions(copy, first=0.7, wrong=0.0):
  """Correct answers of base odds `first`, shown ones multiplied by `copy`."""
  base = np.array([first, 1 - first, wrong])[: 3 if wrong else 2]
  boost = np.ones((len(base), 2))
  boost[0, 0] = boost[1, 1] = copy
  with np.errstate(divide='ignore'):
    return dynamics.restrict(np.log(base), np.log(base[:, None] * boost))


# ---------------------------------------------- measures of a distribution


def test_what_a_distribution_gives_by_hand():
  shares = [0.5, 0.2, 0.3]
  correct = [True, True, False]
  assert distribution_lib.pass_at_k(shares, correct, 1) == pytest.approx(0.7)
  assert distribution_lib.pass_at_k(shares, correct, 3) == pytest.approx(
    1 - 0.3**3
  )
  items = [('a',), ('a', 'b'), ()]
  found = distribution_lib.expected_distinct(shares, items, 2)
  assert found == pytest.approx((1 - 0.3**2) + (1 - 0.8**2))
  p, q = 5 / 7, 2 / 7
  entropy = -p * math.log(p) - q * math.log(q)
  assert distribution_lib.effective_number(shares, correct) == pytest.approx(
    math.exp(entropy)
  )
  assert distribution_lib.effective_number([0.0, 1.0], [True, False]) == 0
  assert distribution_lib.effective_number([1.0, 0.0], [True, True]) == 1


def test_its_pass_at_k_is_the_mean_of_the_estimate():
  chance, n, k = 0.3, 6, 4
  mean = sum(
    math.comb(n, hits)
    * chance**hits
    * (1 - chance) ** (n - hits)
    * pass_at_k(n, hits, k)
    for hits in range(n + 1)
  )
  found = distribution_lib.pass_at_k([chance, 1 - chance], [True, False], k)
  assert found == pytest.approx(mean)


def test_what_is_no_distribution_is_refused():
  for p in ([0.5, 0.4], [1.5, -0.5], [1.0]):
    with pytest.raises(ValueError, match='distribution'):
      distribution_lib.pass_at_k(p, [True, False], 1)
  with pytest.raises(ValueError, match='distribution must be probabilities'):
    distribution_lib.pass_at_k([math.nan, math.nan], [True, False], 1)
  with pytest.raises(ValueError, match='0 draws'):
    distribution_lib.pass_at_k([1.0], [True], 0)


# ------------------------------------------------------------- the forecast


def test_one_step_by_hand():
  """Base .7, .3; shown itself, an answer's odds are multiplied by 4."""
  answers = two_solutions(copy=4.0)
  # pi0(y1|y1) = 2.8 / 3.1, pi0(y1|y2) = .7 / 1.9, and so on.
  pcmi = [
    [math.log(4 / 3.1), math.log(1 / 1.9)],
    [math.log(1 / 3.1), math.log(4 / 1.9)],
  ]
  np.testing.assert_allclose(answers.pcmi, pcmi, rtol=1e-12)
  # Remark 1: log odds rise by E_c[i(y1) - i(y2)] = (.7 - .3) log 4.
  gap = 0.4 * math.log(4)
  assert dynamics.favourite_gap(answers) == pytest.approx(gap)
  assert dynamics.self_pcmi(answers) == pytest.approx(math.log(4))
  policy = dynamics.sd_distribution(answers, ONCE)
  assert policy[0] / policy[1] == pytest.approx(7 / 3 * math.exp(gap))
  policy = dynamics.sd_distribution(answers, Distilling(beta=1.0))
  assert policy[0] / policy[1] == pytest.approx(7 / 3 * math.exp(gap / 2))
  rl = dynamics.rl_distribution(two_solutions(4.0, wrong=0.4), 0.0)
  np.testing.assert_allclose(rl, [0.7, 0.3, 0], rtol=1e-12)


@pytest.mark.parametrize('rate', [0.0, 0.01, 1.0])
def test_without_a_copying_bias_the_base_ratio_stays(rate):
  policy = dynamics.iterated_sd_distribution(
    two_solutions(1.0), ONCE, 300, rate
  )
  np.testing.assert_allclose(policy, [0.7, 0.3], rtol=1e-9)


def test_a_copied_favourite_is_all_that_is_left():
  once = dynamics.sd_distribution(two_solutions(8.0), ONCE)
  assert 0.15 < once[1] < 0.3
  fixed = dynamics.iterated_sd_distribution(two_solutions(8.0), ONCE, 300)
  assert fixed[1] < 0.1  # the feedback
  follows = dynamics.iterated_sd_distribution(
    two_solutions(8.0), ONCE, 300, 0.05
  )
  assert follows[1] < 1e-6  # a fixed teacher holds it back, this one does not


def test_the_iteration_ends_at_the_fixed_point():
  """Log odds log(7/3) + (2 s - 1) log 3, s being the share of the first."""
  policy = dynamics.iterated_sd_distribution(two_solutions(3.0), ONCE, 2000)
  share = 0.9
  for _ in range(500):
    odds = 7 / 3 * math.exp((2 * share - 1) * math.log(3))
    share = odds / (1 + odds)
  np.testing.assert_allclose(policy, [share, 1 - share], rtol=1e-9)


def test_a_pull_away_from_what_is_shown_spreads():
  policy = dynamics.iterated_sd_distribution(two_solutions(1 / 50), ONCE, 400)
  assert 0.5 < policy[0] < 0.7


def test_wrong_answers_vanish_with_the_demonstrations_help():
  answers = two_solutions(1.0, wrong=1.5)
  base = np.exp(answers.logp)
  helped = base[:, None] * np.array([[5.0], [5.0], [0.05]]) * np.ones((3, 2))
  answers = dynamics.restrict(answers.logp, np.log(helped))
  policy = dynamics.iterated_sd_distribution(answers, ONCE, 100)
  assert policy[2] < 0.02
  assert policy[0] / policy[1] == pytest.approx(7 / 3)


def test_the_closed_form_is_that_of_all_answers():
  """On a problem small enough to list, nothing is left out of the set."""
  logp0, given, reward, demo_prob = sequence_distributions(3, 3, 5)
  order = np.argsort(-reward, kind='stable')
  answers = dynamics.restrict(logp0[order], given[order])
  best = theory.sdsd_optimum(logp0, theory.pcmi(given, logp0) @ demo_prob)
  found = dynamics.sd_distribution(answers, ONCE)
  np.testing.assert_allclose(found, best[order], rtol=1e-4)


@pytest.mark.parametrize('count', [2, 3])
def test_all_solutions_shown_together_are_shown_alike(count):
  answers = two_solutions(6.0)
  run = Distilling(count=count, num_samples=400)
  policy = dynamics.sd_distribution(answers, run)
  # Half and half whatever the base prefers: both i add up alike.
  np.testing.assert_allclose(policy, [0.7, 0.3], rtol=1e-9)
  few = dynamics.sd_distribution(
    answers, Distilling(count=count, num_samples=4)
  )
  assert 0.7 < few[0] < dynamics.sd_distribution(answers, ONCE)[0]


def test_a_mixture_of_both_teachers_by_hand():
  run = Distilling(count=2, num_samples=400, pooling='mixture')
  policy = dynamics.sd_distribution(two_solutions(6.0), run)
  mixed = (0.7 * 6 / 4.5 + 0.7 / 2.5) / 2  # pi0(y1|y1), pi0(y1|y2)
  np.testing.assert_allclose(policy[0], mixed, rtol=1e-9)


def test_a_question_without_a_correct_answer_stays_as_it_is():
  logp = np.log([0.3, 0.1])
  answers = dynamics.restrict(logp, np.zeros((2, 0)))
  for name, policy in summary.distributions(answers, SMALL).items():
    np.testing.assert_allclose(policy, [0.75, 0.25], err_msg=name)
  assert np.isnan(dynamics.self_pcmi(answers))


def test_improbable_answers_stay_finite():
  """Sequences of a thousand tokens differ by thousands of nats."""
  answers = AnswerDistribution(
    np.array([0.0, -3000.0]), np.array([[0.0, -4000.0], [-2500.0, 0.0]])
  )
  for policy in summary.distributions(answers, SMALL).values():
    assert np.isfinite(policy).all() and policy.sum() == pytest.approx(1)


def test_long_correct_answers_beside_a_short_wrong_one():
  """Their probabilities underflow, their ratio does not."""
  given = np.array([[-700.0, -910.0], [-900.0, -705.0], [-20.0, -20.0]])
  answers = dynamics.restrict(np.array([-900.0, -903.0, -20.0]), given)
  share = 1 / (1 + math.exp(-3))
  policy = dynamics.rl_distribution(answers, 0.0)
  np.testing.assert_allclose(policy, [share, 1 - share, 0])
  gap = share * (200 - 3) + (1 - share) * (-10 - 198)
  assert dynamics.favourite_gap(answers) == pytest.approx(gap)
  for anchor in theory.ANCHORS:
    for beta in (0.1, 1.0):
      policies = [
        dynamics.rl_distribution(answers, beta, anchor),
        dynamics.sd_distribution(answers, Distilling(beta, anchor=anchor)),
        dynamics.iterated_sd_distribution(
          answers, Distilling(beta, anchor=anchor), 20
        ),
      ]
      for policy in policies:
        assert np.isfinite(policy).all() and policy.sum() == pytest.approx(1)
      assert policies[0][0] == pytest.approx(math.exp(3) * policies[0][1])


def test_improbable_answers_are_forecast_like_probable_ones():
  given = np.array([[-10.0, -10.0], [-13.0, -13.0], [-20.0, -20.0]])
  near, far = (
    summary.distributions(
      dynamics.restrict(np.array([at, at - 3, -20.0]), given), SMALL
    )
    for at in (-300.0, -900.0)
  )
  for name in ('rl', 'sd_once', 'sd_fixed', 'sd'):
    np.testing.assert_allclose(far[name], near[name], rtol=1e-3, err_msg=name)


@pytest.mark.parametrize('estimator', ['k1', 'k2', 'k3', 'full'])
def test_the_kl_is_the_one_the_runs_estimator_descends(estimator):
  answers = two_solutions(4.0, wrong=1.5)
  config = replace(SMALL, loss__kl=f'{estimator}(coef=0.5)')
  found = summary.distributions(answers, config)
  right = found['rl'][:2].sum()
  if estimator == 'k3':  # beta pi0 / (lambda - R), by its own equation
    gap = 0.5 * 0.4 / right
    assert right + 0.5 * 0.6 / (gap + 1) == pytest.approx(1)
  else:
    odds = 0.4 * math.exp(1 / 0.5)
    assert right == pytest.approx(odds / (odds + 0.6))


def test_bad_rates_are_named():
  for steps, rate in ((0, 0.1), (5, 1.5)):
    with pytest.raises(ValueError, match='rate='):
      dynamics.iterated_sd_distribution(two_solutions(2.0), ONCE, steps, rate)


# ------------------------------------------------------------- the pipeline


def test_scores_are_those_of_the_table():
  """Answers of two tokens, in each of three contexts, against the table."""
  logits = np.random.default_rng(0).normal(size=(3, 4, 3))
  policies = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  apply_fn, params = table_model(logits)
  answers = jnp.asarray([[[2, 1], [0, 2], [1, 0]]] * 3)
  contexts = jnp.arange(3)[:, None]
  length = jnp.asarray([[2, 2, 1]] * 3)
  found = forecast.answer_logp(
    apply_fn, params, contexts, jnp.ones(3, int), answers, length
  )
  whole = sequence_logp(policies, 2)
  expected = np.stack([whole[:, 7], whole[:, 2], policies[:, 0, 1]], axis=1)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_is_found_is_sorted_out():
  """Two spellings of one solution, another solution, two wrong answers."""
  right = [Verdict(True, 1.0, solution=s) for s in 'ab']
  wrong = Verdict(False, reason='wrong_end')
  kinds = {
    (1,): right[0],
    (1, 1): right[0],
    (2,): right[1],
    (3,): wrong,
    (4,): wrong,
  }
  ids = [(3,), (1,), (2,), (1, 1), (4,), (4,), (1, 1), (2,)]
  found = summary.collect(
    Question(0, 'x', '', None),
    ids,
    [str(x) for x in ids],
    [kinds[x] for x in ids],
  )
  assert found.ids == [(1, 1), (2,), (4,), (3,)]
  assert found.texts == ['(1, 1)', '(2,)', '(4,)', '(3,)']
  assert found.num_correct == 2


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'method': c.PolicyGradient()}, "method 'sd'"),
    ({'method__divergence': 'jsd'}, 'method.divergence'),
    ({'method__anchor': 'trust_region'}, 'method.anchor'),
    ({'method__anchor': 'beta(beta=3.0)'}, 'method.anchor'),
    ({'method__teacher_temperature': 2.0}, 'method.teacher_temperature'),
    ({'method__demonstrations__strategy': 'reference'}, 'strategy'),
    ({'method__demonstrations__feedback': 'without_peer'}, 'feedback'),
    (
      {'method__demonstrations__strategy': 'uniform(exclude_same_text=True)'},
      'same_text',
    ),
    ({'eval__temperature': 0.7}, 'eval.temperature=0.7'),
  ],
)
def test_what_has_no_closed_form_is_refused(changes, named):
  from_config_dict(to_dict(SMALL))
  with pytest.raises(c.ConfigError, match=named):
    from_config_dict(to_dict(replace(SMALL, **changes)))


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp('forecast')
  config = replace(SMALL, task__cache_dir=str(folder / 'data'))
  with one_device():
    main.run(config, str(folder / 'run'))
  return folder / 'run'


def test_the_shipped_model_is_forecast_to_collapse(written):
  flat = json.loads((written / 'forecast.json').read_text())
  for name in SMALL.eval.sets:
    part = {k.removeprefix(f'{name}/'): v for k, v in flat.items()}
    assert 0.5 < part['mass'] <= 1
    # RL keeps the base's ratios, so their entropy; SD with feedback does not.
    policies = ('base', 'rl', 'sd_once', 'sd_fixed', 'sd')
    found = [part[f'{policy}/effective_solutions'] for policy in policies]
    assert found[0] == pytest.approx(found[1])
    assert found[1:] == sorted(found[1:], reverse=True)
    assert found[-1] < 1.05 < found[0]
    assert part['sd/pass@1'] > 0.85 > part['base/pass@1']
    assert part['self_pcmi'] > 3
    for key in ('sd/pass@16', 'base/concepts_correct', 'mass'):
      assert part[f'{key}/low'] <= part[key] <= part[f'{key}/high']


def test_the_samples_are_those_of_an_evaluation(written, capsys):
  config = from_config_dict(json.loads((written / 'config.json').read_text()))
  with one_device():
    main.run(replace(config, mode='eval'), str(written))
  flat = json.loads((written / 'forecast.json').read_text())
  evals = json.loads((written / 'eval.json').read_text())
  sampled = {
    name.replace('/sampled/', '/', 1): value
    for name, value in flat.items()
    if '/sampled/' in name
  }
  assert sampled == {k.removeprefix('base/'): v for k, v in evals.items()}
  capsys.readouterr()


def test_whether_it_agrees_with_the_evaluation_is_said():
  flat = {'a/base/pass@1': 0.4, 'a/sampled/pass@1': 0.5}
  options = {'num_samples': 16, 'sets': ['a']}
  said = tables.agreement
  assert said(flat, {}, options, options) == ''
  evals = {'base/a/pass@1': 0.5, 'base/b/pass@1': 0.1}
  assert said(flat, evals, options, options) == (
    'The base, as sampled, is that of eval.json.\n'
  )
  evals['base/a/pass@1'] = 0.25
  assert said(flat, evals, options, {'num_samples': 64, 'sets': ['a']}) == (
    'The base, as sampled, is not that of eval.json (a/pass@1: 0.5 here, '
    '0.25 there): eval.num_samples=16, 64 there.\n'
  )
  assert 'the options agree' in said(flat, evals, options, options)


def test_a_runs_folder_stays_that_of_the_run(tmp_path):
  run = replace(SMALL, mode='train')
  Workdir(str(tmp_path), run).close()
  Workdir(str(tmp_path), SMALL).close()
  assert json.loads((tmp_path / 'config.json').read_text())['mode'] == 'train'


def test_table_and_picture_are_written(written):
  text = (written / 'forecast.md').read_text()
  assert '### larger' in text and '| sd, one step | ' in text
  assert '| base, as sampled | 0.' in text
  assert text.count('self-PCMI ') == 1
  assert (written / 'plots' / 'forecast.png').read_bytes()[1:4] == b'PNG'
  flat = json.loads((written / 'forecast.json').read_text())
  assert tables.ks_of(flat, 'larger') == [1, 2, 4, 8, 16]
