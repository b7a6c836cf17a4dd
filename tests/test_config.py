"""Options: parsing, overrides, and errors that name what is wrong."""

import dataclasses
import json

import pytest

from configs import (
  concept_graph,
  concept_graph_qwen3,
  concept_graph_smollm2,
)
from sdjax.config import presets
from sdjax.config import schema as c
from sdjax.config.check import flatten, validate
from sdjax.config.convert import from_config_dict, replace, to_dict
from sdjax.training.describe import loss_in_words

VARIANTS = ['sd', 'sd_k3', 'rl', 'rl_diversity', 'pretrain']


EVERY = [
  *[(concept_graph, name) for name in VARIANTS],
  *[(concept_graph_qwen3, name) for name in concept_graph_qwen3.METHODS],
  *[(concept_graph_smollm2, name) for name in concept_graph_smollm2.METHODS],
]


@pytest.mark.parametrize(
  ('file', 'variant'),
  EVERY,
  ids=[f'{file.__name__.split(".")[-1]}:{name}' for file, name in EVERY],
)
def test_round_trip_through_flags_and_json(file, variant):
  config = from_config_dict(file.get_config(variant))
  assert from_config_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_twins_differ_in_the_method_alone():
  flats = [
    flatten(to_dict(from_config_dict(concept_graph.get_config(name))))
    for name in ('sd', 'sd_k3', 'rl', 'rl_diversity')
  ]
  for flat in flats[1:]:
    for name in flat.keys() | flats[0].keys():
      if not name.startswith('method.'):
        assert flat[name] == flats[0][name], name


def test_unknown_variant_names_the_known_ones():
  with pytest.raises(c.ConfigError, match='sdd.*sd, sd_k3, rl'):
    concept_graph.get_config('sdd')


def broken(path, value, variant='sd'):
  values = to_dict(from_config_dict(concept_graph.get_config(variant)))
  *sections, name = path.split('.')
  section = values
  for part in sections:
    section = section[part]
  section[name] = value
  return values


@pytest.mark.parametrize(
  ('path', 'value', 'says'),
  [
    ('optimizer.learning_rte', 1.0, "learning_rte.*'learning_rate'"),
    ('optimiser', {}, "optimiser.*'optimizer'"),
    ('train.num_steps', 0, 'train.num_steps=0 must be at least 1'),
    ('train.num_steps', 2.5, 'train.num_steps=2.5 must be of type int'),
    ('seed', True, 'seed=True must be of type int'),
    ('eval.sets', 'larger', "eval.sets='larger' must be a tuple"),
    ('method.name', 'sdd', "'sdd' is not one of"),
    ('method.objective', 'reverse', "'reverse' is not one.*'reverse_kl'"),
    ('method.ema_rate', 1.5, 'method.ema_rate=1.5 must be in 0..1'),
    ('method.jsd_alpha', 0.3, "jsd_alpha=0.3 does nothing.*'reverse_kl'"),
    ('method.demonstrations.file', 'x.jsonl', 'does nothing'),
    ('method.demonstrations.template', '{question}', 'exactly once'),
    ('method.demonstrations.strategy', 'external', 'needs.*file'),
    ('mode', 'pretrain', 'contradict each other'),
    ('rollout.temperature', 0.0, 'temperature=0'),
    ('rollout.num_samples', 1, 'no rollout a peer'),
    ('rollout.context_buckets', (8, 12), 'must equal'),
    ('rollout.context_buckets', (28, 12), 'rising'),
    ('rollout.top_p', 0.0, 'top_p'),
    ('train.micro_batches', 3, 'micro_batches=3 must divide'),
    ('model', 'qwen', 'model.*must be a section'),
  ],
)
def test_bad_options_are_named(path, value, says):
  with pytest.raises(c.ConfigError, match=says):
    from_config_dict(broken(path, value))


SD, RL, MIX = c.SelfDistillation, c.PolicyGradient, c.Mix
CHARGED = {'loss__kl_coef': 0.1, 'loss__kl_in': 'reward'}
OLD = {'train__mini_batches': 4}  # so that ratios are not all 1


@pytest.mark.parametrize(
  ('method', 'changes', 'says'),
  [
    (SD(), {'method__top_k': 5}, "top_k=5 does nothing when .*support='full'"),
    (SD(), {'method__tail': False}, 'tail=False does nothing'),
    (SD(), {'method__jsd_normalised': True}, 'jsd_normalised=True does noth'),
    (SD(), {'method__snapshot_every': 3}, "nothing when method.teacher='ema'"),
    (SD(), {'method__trust_region': 0.5}, 'acts for .trust_region.'),
    (SD(), {'method__anchor_steps': 9}, 'anchor_beta=1.0'),
    (SD(), {'method__pooling': 'mixture'}, 'a mixture needs at least 2'),
    (SD(), {'method__importance_clip': 3.0}, 'all ratios are 1'),
    (
      SD(support='sampled', pointwise_clip=0.1),
      {},
      "pointwise_clip=0.1 does nothing when .*'sampled'",
    ),
    (
      SD(objective='score_weighted', credit_discount=0.5),
      {},
      'which compares no laws',
    ),
    (
      SD(teacher='trust_region', anchor_beta=2.0),
      {},
      'both mix the teacher with the reference',
    ),
    (SD(demonstrations=c.Demonstrations(contrast=2)), {}, "rule='rlcsd'"),
    (
      SD(demonstrations=c.Demonstrations(strategy='none')),
      {},
      'shows the teacher nothing',
    ),
    (
      SD(demonstrations=c.Demonstrations(feedback_template='x')),
      {},
      "nothing when .*feedback='never'",
    ),
    (
      SD(
        demonstrations=c.Demonstrations(
          strategy='reference', exclude_self=False
        )
      ),
      {},
      'exclude_self=False does nothing',
    ),
    (
      SD(
        demonstrations=c.Demonstrations(
          strategy='reference', exclude_same_text=True
        )
      ),
      {},
      'exclude_same_text=True does nothing',
    ),
    (
      SD(
        demonstrations=c.Demonstrations(
          exclude_self=False, exclude_same_text=True
        )
      ),
      {},
      'exclude_self=False does nothing when .*exclude_same_text',
    ),
    (
      SD(demonstrations=c.Demonstrations(file_draw='distinct')),
      {},
      "file_draw='distinct' does nothing when .*strategy='uniform'",
    ),
    (RL(clip_high=0.28), {}, 'clip_high=0.28 does nothing in the only update'),
    (RL(clip_high=0.28), {'rollout__top_p': 0.9}, 'all ratios are 1'),
    (
      SD(demonstrations=c.Demonstrations(strategy='reference', count=3)),
      {},
      'count=3 is more than there can be: 1',
    ),
    (SD(demonstrations=c.Demonstrations(count=8)), {}, 'can be: 7'),
    (
      SD(
        demonstrations=c.Demonstrations(
          strategy='reference', feedback='without_peer'
        )
      ),
      {},
      'does nothing.*there is always an answer',
    ),
    (
      SD(demonstrations=c.Demonstrations(strategy='reference')),
      {'rollout__resample': 2},
      'every question teaches',
    ),
    (
      SD(
        demonstrations=c.Demonstrations(
          template='{question}{demonstration}{feedback}'
        )
      ),
      {},
      'must not hold {feedback}',
    ),
    (
      SD(
        success_exponent=0.5,
        demonstrations=c.Demonstrations(strategy='reference'),
      ),
      {'rollout__num_samples': 1},
      'success_exponent=0.5 leaves every question without weight',
    ),
    (SD(), {'reward__name': 'function', 'reward__function': 'a'}, "judge='rew"),
    (SD(), {'reward__judge': 'reward'}, "nothing when reward.name='verifier'"),
    (RL(dual_clip=3.0), {}, 'set train.mini_batches or train.epochs'),
    (RL(dual_clip=0.5), OLD, 'dual_clip=0.5 must be above 1'),
    (RL(policy_loss='reinforce', clip_low=0.1), OLD, 'clip_low=0.1 does noth'),
    (RL(policy_loss='cispo', drop_low=0.2), {}, 'all ratios are 1'),
    (RL(drop_high=0.2), OLD, "drop_high=0.2 does nothing .*'clip'"),
    (RL(advantage='rloo', std='sample'), {}, "std='sample' does nothing"),
    (RL(std_epsilon=0.0), {}, 'std_epsilon=0.0 must be above 0'),
    (MIX(rule='loss', positive_only=True), {}, 'positive_only=True does noth'),
    (RL(adaptive_clip=True, clip_low=0.1), OLD, 'when .*adaptive_clip=True'),
    (RL(pass_k=2), {}, "pass_k=2 does nothing when .*advantage='grpo'"),
    (RL(advantage='pass_at_k', pass_k=8), {}, 'pass_k=8 must be below'),
    (RL(diversity_by='solution'), {}, 'diversity_weight=0.0'),
    (
      RL(diversity_weight=2.0, diversity_how='multiply'),
      {},
      r'diversity_weight=2.0 must be in \(0, 1\]',
    ),
    (RL(advantage='rosa', diversity_weight=0.1), {}, "advantage='rosa'"),
    (RL(advantage='rloo'), {'rollout__num_samples': 1}, 'nothing to compare'),
    (RL(overlong_share=1.5), {}, 'overlong_share=1.5 must be in 0..1'),
    (MIX(ratio_clip=0.5), {}, "ratio_clip=0.5 does nothing .*'advantage'"),
    (MIX(rule='srpo', weight=0.1), {}, "weight=0.1 does nothing .*'srpo'"),
    (MIX(sd=SD(objective='jsd')), {}, 'uses only what the teacher says'),
    (MIX(rule='loss', sd=SD(objective='score_weighted')), {}, 'not a loss per'),
    (MIX(weight=1.5), {}, 'weight=1.5 must be in 0..1'),
    (MIX(rule='rlcsd'), {}, 'contrast above 0'),
    (MIX(schedule=c.Schedule(hold=3)), {}, 'schedule.hold=3 does nothing'),
    (SD(), {'loss__kl_estimator': 'k1'}, 'loss.kl_coef=0.0'),
    (RL(), {'loss__kl_in': 'reward'}, "kl_in='reward' does nothing .*kl_coef"),
    (
      RL(),
      {**CHARGED, 'loss__kl_estimator': 'k1'},
      "kl_estimator='k1' does nothing when loss.kl_in='reward'",
    ),
    (SD(), CHARGED, "'sd' needs loss.kl_in='loss'"),
    (MIX(), CHARGED, "'mix' needs loss.kl_in='loss'"),
    (SD(), {'loss__skip_tokens': 9}, 'leaves no token'),
    (SD(), {'reward__function': 'a.py:f'}, "reward.name='verifier'"),
    (SD(), {'reward__name': 'model'}, 'needs reward.model'),
    (SD(), {'train__mini_batches': 3}, 'must divide'),
  ],
)
def test_an_option_that_would_do_nothing_is_an_error(method, changes, says):
  config = replace(c.Config(method=method), **changes)
  with pytest.raises(c.ConfigError, match=says):
    validate(config)


def test_what_needs_old_rollouts_acts_after_the_first_update():
  validate(replace(c.Config(method=RL(clip_high=0.28)), **OLD))
  validate(replace(c.Config(method=RL(dual_clip=3.0)), train__epochs=2))


@pytest.mark.parametrize('name', presets.PRESETS)
def test_presets_stand_and_name_their_sources(name):
  preset = presets.PRESETS[name]
  assert all(source for _, source in preset.values.values())
  assert f' {name}' in (presets.__doc__ or '')
  small = from_config_dict(concept_graph.get_config(name))
  assert small.optimizer == c.Optimizer() and small.model == c.Model()
  large = from_config_dict(concept_graph_qwen3.get_config(name))
  flat = flatten(to_dict(large))
  for option, (value, _) in preset.values.items():
    assert flat[option] == value, option
  assert loss_in_words(small) and loss_in_words(large)


def test_an_unknown_preset_names_the_nearest():
  with pytest.raises(c.ConfigError, match="'sdp0'.*did you mean 'sdpo'"):
    presets.apply(c.Config(), 'sdp0')


def test_a_method_of_ones_own_has_options_of_its_own(monkeypatch):
  @dataclasses.dataclass(frozen=True)
  class Sharp(c.PolicyGradient):
    name: str = 'sharp'
    sharpness: float = 2.0

  monkeypatch.setitem(c.METHODS, 'sharp', Sharp)
  config = c.Config(method=Sharp(sharpness=3.0))
  assert from_config_dict(json.loads(json.dumps(to_dict(config)))) == config
  bad = replace(config, method__clip_high=0.3)
  with pytest.raises(c.ConfigError, match='all ratios are 1'):
    validate(bad)


def test_options_of_the_other_method_do_not_exist():
  with pytest.raises(c.ConfigError, match=r'unknown option method\.ema_rate'):
    from_config_dict(broken('method.ema_rate', 0.1, variant='rl'))
  with pytest.raises(c.ConfigError, match='diversity_for.*does nothing'):
    from_config_dict(broken('method.diversity_for', 'all', variant='rl'))


def test_what_is_absent_keeps_its_default():
  values = to_dict(replace(c.Config(), optimizer__b1=0.5))
  del values['optimizer']['b2'], values['mesh']
  assert from_config_dict(values) == replace(c.Config(), optimizer__b1=0.5)


def test_replace_reaches_into_sections():
  config = replace(c.Config(), method__ema_rate=0.5, seed=3)
  assert config.method.ema_rate == 0.5 and config.seed == 3
  assert config.method.objective == 'reverse_kl'


def test_ineffective_options_follow_their_switch():
  config = replace(c.Config(), method__objective='jsd', method__jsd_alpha=0.3)
  validate(config)
  with pytest.raises(c.ConfigError, match='jsd_alpha=1.0'):
    validate(replace(config, method__jsd_alpha=1.0))
  frozen = replace(c.Config(), method__teacher='frozen')
  validate(frozen)
  with pytest.raises(c.ConfigError, match='ema_rate'):
    validate(replace(frozen, method__ema_rate=0.2))


def test_every_option_is_documented():
  for kind in (
    c.Model,
    c.ConceptGraph,
    c.Rollout,
    c.Demonstrations,
    c.SelfDistillation,
    c.PolicyGradient,
    c.Mix,
    c.Schedule,
    c.Pretraining,
    c.Reward,
    c.Loss,
    c.Optimizer,
    c.Train,
    c.Eval,
    c.Mesh,
    c.Config,
  ):
    for field in dataclasses.fields(kind):
      assert f'    {field.name}: ' in (kind.__doc__ or ''), (kind, field.name)


@pytest.mark.parametrize(
  ('shown', 'says'),
  [
    ({}, 'drawn uniformly from the other correct rollouts, '),
    ({'exclude_same_text': True}, "rollouts whose text is not the rollout's"),
    ({'strategy': 'external', 'file': 'x'}, 'drawn from a file by frequency'),
    (
      {'strategy': 'external', 'file': 'x', 'file_draw': 'distinct'},
      'drawn from a file, each text equally likely',
    ),
  ],
)
def test_loss_in_words_says_what_is_shown(shown, says):
  config = c.Config(method=SD(demonstrations=c.Demonstrations(**shown)))
  assert says in loss_in_words(config)


def test_loss_in_words_names_direction_teacher_and_weights():
  words = loss_in_words(c.Config())
  assert 'KL(student || teacher)' in words and 'rate 0.05' in words
  words = loss_in_words(
    c.Config(
      method=c.PolicyGradient(diversity_weight=0.25), loss=c.Loss(kl_coef=0.01)
    )
  )
  assert '0.25 x the share' in words and '0.01 x KL' in words
  charged = replace(c.Config(method=c.PolicyGradient()), **CHARGED)
  words = loss_in_words(charged)
  assert 'A less 0.1 x K' in words and 'over the rollout' in words
  words = loss_in_words(replace(charged, loss__kl_in='reward_to_go'))
  assert 'from the token on' in words and 'x KL(' not in words
  assert '(R - mean) / (std + 0.0001)' in words
  words = loss_in_words(
    c.Config(method=RL(policy_loss='cispo', std='sample', drop_high=0.3))
  )
  assert '(R - mean) / (sample std + 0.0001)' in words
  assert 'A log p, 0 where r is above 1.3 with A > 0; A = ' in words
  words = loss_in_words(c.Config(method=MIX(rule='sdpg', positive_only=True)))
  assert 'L_rl + w L_sd where A > 0, w = 0.5' in words
