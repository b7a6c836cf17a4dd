import json

import numpy as np
import pytest

from sdjax.forecast import illustration
from sdjax.forecast.illustration import MAIN, OTHERS, Variant, measure, train

NAMED = {variant.name: variant for variant in MAIN + OTHERS}


def coverages(name, steps=4000):
  found = [measure(policy) for policy in train(NAMED[name], steps=steps)]
  assert all(m['reward'] > 0.75 for m in found)
  return [m['coverage'] for m in found]


def test_the_base_policy_is_as_published():
  found = measure(illustration.base_policy())
  assert abs(found['reward'] - 0.348) < 0.005
  assert found['coverage'] == 1
  assert found['quarters'][0] > found['quarters'][2]
  np.testing.assert_allclose(sum(found['quarters']), 1, atol=0.01)


def test_a_kl_keeps_both_regions_in_grpo_and_not_in_sdsd():
  assert coverages('GRPO') == [0.5, 1, 1]
  assert coverages('SDSD') == [0.5, 0.5, 0.5]


def test_a_mixture_teacher_keeps_both_regions():
  assert coverages('SDSD, mixture teacher') == [0.5, 1, 1]


def test_grpo_ends_at_its_closed_form():
  best = illustration.theory.kl_rl_optimum(
    np.log(illustration.base_policy()), illustration.REWARD, 0.5
  )
  found = train(NAMED['GRPO'], [0.5])[0]
  np.testing.assert_allclose(found, best, rtol=0, atol=1e-5)


def test_averaged_losses_without_a_floor_miss_both_regions():
  found = measure(train(NAMED['SDSD, no floor'], [0.1], 4000)[0])
  assert found['reward'] < 0.01
  assert np.argmax(found['quarters']) == 1  # between the correct ones


@pytest.mark.parametrize('variant', MAIN[:3], ids=lambda v: v.objective)
def test_the_gradient_is_that_of_the_stated_loss(variant):
  """One step against finite differences of the loss as written."""
  policy = train(variant, [0.1], 30)[0]
  step = np.log(train(variant, [0.1], 31)[0]) - np.log(policy)
  log_q = np.log(policy)[:, None] + illustration.log_kernel(variant)
  log_q -= np.log(np.exp(log_q).sum(0))
  shown = policy * illustration.REWARD
  shown /= shown.sum()

  def loss(logits):
    p = np.exp(logits) / np.exp(logits).sum()
    anchor = 0.1 * p @ np.log(p / illustration.base_policy())
    if variant.objective == 'grpo':
      return anchor - p @ illustration.REWARD
    pooled = log_q @ shown
    if variant.objective == 'mixture':
      pooled = np.log(np.exp(log_q) @ shown)
    return anchor + p @ (np.log(p) - pooled)

  logits = np.log(policy)
  nudges = 1e-5 * np.eye(len(policy))
  slope = [(loss(logits - e) - loss(logits + e)) / 2e-5 for e in nudges]
  # Equal but for the constant that a softmax does not see.
  np.testing.assert_allclose(step - step[0], slope - slope[0], atol=1e-6)


def test_unknown_objectives_are_named():
  with pytest.raises(ValueError, match="objective='dpo' is not one of"):
    train(Variant('x', 'dpo'))


def test_the_command_writes_what_it_says(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(illustration, 'train', lambda _: np.full((3, 100), 0.01))
  illustration.main([f'--out={tmp_path / "new"}'])
  assert '| GRPO, published | 0.976 / 0.50 |' in capsys.readouterr().out
  content = json.loads((tmp_path / 'new' / 'illustration.json').read_text())
  assert len(content['results']) == 3 * (1 + len(MAIN) + len(OTHERS))
  assert content['results'][3]['reward'] == pytest.approx(0.5)
  png = (tmp_path / 'new' / 'illustration.png').read_bytes()
  assert png.startswith(b'\x89PNG')
  assert 'Coverage is' in (tmp_path / 'new' / 'illustration.md').read_text()
