"""Options: parsing, overrides, and errors that name what is wrong."""

import dataclasses
import json
import re

import pytest

from configs import (
  concept_graph,
  concept_graph_qwen3,
  concept_graph_smollm2,
)
from sdjax.config import presets
from sdjax.config import schema as c
from sdjax.config.check import flatten, sections, validate
from sdjax.config.convert import (
  RENAMED,
  RENAMED_VALUES,
  from_config_dict,
  replace,
  to_dict,
)
from sdjax.feedback.strategies import (
  Demonstrations,
  External,
  Reference,
  Uniform,
)
from sdjax.objectives.advantages import GRPO
from sdjax.objectives.divergence import JSD, ReverseKL, ScoreWeighted
from sdjax.objectives.diversity_reward import Bonus
from sdjax.objectives.mixing import SDPG
from sdjax.objectives.policy_loss import CISPO, Clip
from sdjax.objectives.pooling import Mixture
from sdjax.objectives.reference_kl import K3, KLReward
from sdjax.objectives.schedule import Trapezoid
from sdjax.options import Option
from sdjax.steps.teacher import EMA
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
    ('eval.top_p', 0.0, 'eval.top_p=0.0 must be above 0'),
    ('method.name', 'sdd', "'sdd' is not one of"),
    ('method.divergence', 'reverse', "'reverse' is not one.*'reverse_kl'"),
    ('method.divergence', 3, 'method.divergence=3 must be one of reverse_kl'),
    ('method.teacher', 'ema(rate=1.5)', r'method.teacher=.*rate=1.5.* at most'),
    ('method.divergence', 'reverse_kl(alpha=0.3)', 'no option .alpha.*clip'),
    ('method.divergence', 'jsd(alpha=1.0)', r'jsd\(alpha=1.0\).*below 1'),
    ('method.demonstrations.strategy', "uniform(file='x')", 'no option .file'),
    ('method.teacher', {'rate': 0.1}, r'current.*, as text: ema\(rate=0.1\).$'),
    ('method.teacher', {'speed': 0.1}, 'snapshot, as text.$'),
    ('method.demonstrations.template', '{question}', 'exactly once'),
    # Each path is named once, by whichever part of it notices.
    ('method.demonstrations.strategy', 'none', '^method.demonstrations.strat'),
    (
      'method.demonstrations.count',
      9,
      '^method.demonstrations.count=9 is more',
    ),
    ('task.part', 'bogus', "^task.part is 'bogus'"),
    ('method.demonstrations.strategy', 'external', 'lacks file'),
    ('mode', 'pretrain', 'contradict each other'),
    ('mode', 'trian', "mode='trian' is not one of train.*'train'"),
    ('rollout.temperature', 0.0, 'temperature=0'),
    ('rollout.num_samples', 1, 'no rollout a peer'),
    ('rollout.context_buckets', (8, 12), 'must equal'),
    ('rollout.context_buckets', (28, 12), 'rising'),
    ('rollout.top_p', 0.0, 'rollout.top_p=0.0 must be above 0'),
    ('train.micro_batches', 3, 'micro_batches=3 must divide'),
    ('model', 'qwen', 'model.*must be a section'),
  ],
)
def test_bad_options_are_named(path, value, says):
  with pytest.raises(c.ConfigError, match=says):
    from_config_dict(broken(path, value))


@pytest.mark.parametrize(
  ('variant', 'path', 'value', 'says'),
  [
    (
      'balanced_rl',
      'sd.demonstrations.count',
      9,
      'sd.demonstrations.count=9 is',
    ),
    ('pretrain', 'num_layers', 0, 'num_layers=0 must be at least 1'),
    ('pretrain', 'careful_steps', -1, 'careful_steps=-1 must be at least 0'),
    ('pretrain', 'easy_share', 1.5, 'easy_share=1.5 must be at most 1'),
    (
      'pretrain',
      'slip_share',
      0.1,
      'copy_share=0.98 and slip_share=0.1 add up',
    ),
  ],
)
def test_bad_options_of_other_methods_are_named(variant, path, value, says):
  with pytest.raises(c.ConfigError, match=f'^method.{says}'):
    from_config_dict(broken(f'method.{path}', value, variant))


SD, RL, MIX = c.SelfDistillation, c.PolicyGradient, c.Mix
CHARGED = {'loss__kl': KLReward(0.1)}
OLD = {'train__mini_batches': 4}  # so that ratios are not all 1


def given(kind, **options):
  """Makes a section when the test runs, as it may fail; choices as text."""
  return lambda: kind(**options)


def shown(**options):
  return lambda: SD(demonstrations=Demonstrations(**options))


@pytest.mark.parametrize(
  ('method', 'changes', 'says'),
  [
    (SD, {'method__pooling': 'mixture'}, 'a mixture needs at least 2'),
    (SD, {'method__importance_clip': 3.0}, 'all ratios are 1'),
    (
      given(SD, support='sampled', divergence='reverse_kl(clip=0.1)'),
      {},
      r"support='sampled' is defined for .*not 'reverse_kl\(clip=0.1\)'",
    ),
    (
      given(SD, divergence='score_weighted', credit_discount=0.5),
      {},
      'credit_discount=0.5 does nothing.*which compares no distributions',
    ),
    (
      given(SD, divergence='score_weighted', support='top_k'),
      {},
      'support=.*does nothing.*which compares no distributions',
    ),
    (SD, {'method__divergence': 'reverse_kl(clip=0)'}, 'clip=0.* above 0'),
    (SD, {'method__teacher_temperature': 0.0}, '=0.0 must be above 0'),
    (SD, {'method__anchor': 'beta(beta=1.0)'}, 'beta=1.0.* above 1'),
    (SD, {'method__teacher': 'snapshot(every=0)'}, 'every=0.* at least 1'),
    (shown(contrast=2), {}, "contrast=2 does nothing .*rule='rlcsd'"),
    (shown(strategy='none'), {}, 'shows the teacher nothing'),
    (
      shown(strategy='none', feedback='always', count=2),
      {},
      "count=2 does nothing with strategy='none'",
    ),
    (
      shown(strategy='none', feedback='always', template='{question}'),
      {},
      "template does nothing with strategy='none'",
    ),
    (
      shown(feedback_template='x'),
      {},
      "feedback_template does nothing with feedback='never'",
    ),
    (
      shown(feedback='without_peer', both_template='x'),
      {},
      "both_template does nothing with feedback='without_peer'",
    ),
    (
      shown(strategy='uniform(exclude_self=False, exclude_same_text=True)'),
      {},
      'exclude_self=False.* does nothing with exclude_same_text',
    ),
    (given(RL, policy_loss=Clip(high=0.28)), {}, 'high of .*in the only upd'),
    (
      given(RL, policy_loss=Clip(high=0.28)),
      {'rollout__top_p': 0.9},
      'all ratios are 1',
    ),
    (
      shown(strategy='reference', count=3),
      {},
      'count=3 is more than there can be: 1',
    ),
    (shown(count=8), {}, 'can be: 7'),
    (
      shown(strategy='reference', feedback='without_peer'),
      {},
      'does nothing.*there is always an answer',
    ),
    (
      shown(strategy='reference'),
      {'rollout__resample': 2},
      'every question teaches',
    ),
    (
      shown(template='{question}{demonstration}{feedback}'),
      {},
      'must not hold {feedback}',
    ),
    (
      given(
        SD,
        success_exponent=0.5,
        demonstrations=Demonstrations(Reference()),
      ),
      {'rollout__num_samples': 1},
      'success_exponent=0.5 leaves every question without weight',
    ),
    (SD, {'reward__name': 'function', 'reward__function': 'a'}, "judge='rew"),
    (
      SD,
      {'reward__judge': 'reward'},
      "judge='reward' does nothing when name='v",
    ),
    (
      given(RL, policy_loss=Clip(dual=3.0)),
      {},
      'set train.mini_batches or train.epochs',
    ),
    (given(RL, policy_loss='adaptive_clip'), {}, 'all ratios are 1'),
    (given(RL, policy_loss='gspo(low=0.1)'), {}, 'all ratios are 1'),
    (given(RL, policy_loss='clip(dual=0.5)'), OLD, 'dual=0.5.* above 1'),
    (given(RL, policy_loss='gspo(dual=1.0)'), OLD, 'dual=1.0.* above 1'),
    (given(RL, policy_loss='adaptive_clip(dual=1)'), OLD, 'dual=1.* above 1'),
    (given(RL, policy_loss=CISPO(drop_low=0.2)), {}, 'all ratios are 1'),
    (given(RL, advantage='grpo(epsilon=0.0)'), {}, 'epsilon=0.0.* above 0'),
    (
      given(RL, advantage='pass_at_k(k=8)'),
      {},
      r'pass_at_k\(k=8\) must have k below rollout.num_samples=8',
    ),
    (
      given(RL, diversity='add(by="solution", of="all")'),
      {},
      "of='all'.* does nothing with by='solution'",
    ),
    (given(RL, diversity='multiply(weight=2.0)'), {}, '=2.0.* at most 1'),
    (
      given(RL, advantage='rosa', diversity=Bonus(0.1)),
      {},
      "diversity=.* does nothing with advantage='rosa'",
    ),
    (
      given(RL, advantage='pass_at_k', overlong_share=0.1),
      {},
      'overlong_share=0.1 does nothing with advantage=',
    ),
    (
      given(RL, advantage='rloo'),
      {'rollout__num_samples': 1},
      'nothing to compare',
    ),
    (
      given(RL, advantage='reinforce', diversity=Bonus()),
      {'rollout__num_samples': 1},
      'diversity=.* does nothing when rollout.num_samples=1',
    ),
    (given(RL, overlong_share=1.5), {}, 'overlong_share=1.5 must be .*most 1'),
    (
      given(MIX, rule='srpo', schedule=Trapezoid(fall=3)),
      {},
      'schedule=.*does nothing with .*which has no weight',
    ),
    (
      given(MIX, sd=SD(divergence=JSD())),
      {},
      'uses only what the teachers say',
    ),
    (
      given(MIX, rule='loss', sd=SD(divergence=ScoreWeighted())),
      {},
      'not a loss per',
    ),
    (given(MIX, rule='advantage(weight=1.5)'), {}, 'weight=1.5.* at most 1'),
    (given(MIX, rule='rlcsd'), {}, 'contrast above 0'),
    (
      given(MIX, rule='rlcsd(threshold=2.0)'),
      {},
      r'threshold=2.0\) must be below clip=2.0',
    ),
    (
      given(
        MIX,
        rule='rlcsd',
        sd=SD(
          pooling=Mixture(), demonstrations=Demonstrations(count=2, contrast=1)
        ),
      ),
      {},
      "sd.pooling=mixture does nothing with rule='rlcsd'",
    ),
    (
      given(MIX, schedule='trapezoid(hold=3)'),
      {},
      r'trapezoid\(hold=3\) does nothing when fall=0',
    ),
    (SD, {'loss__kl': 'k1'}, r"'k1' lacks coef; write k1\(coef=...\)"),
    (SD, CHARGED, "'sd' needs one in the loss"),
    (MIX, CHARGED, "'mix' needs one in the loss"),
    (SD, {'loss__skip_tokens': 9}, 'leaves no token'),
    (SD, {'loss__aggregation': 'mean'}, 'aggregation=.mean. must be .token_me'),
    (SD, {'reward__function': 'a.py:f'}, "nothing when name='verifier'"),
    (SD, {'reward__name': 'model'}, 'needs reward.model'),
    (SD, {'train__mini_batches': 3}, 'must divide'),
    (
      SD,
      {'alarm__action': 'off', 'alarm__window': 3},
      "window=3 does nothing when action='off'",
    ),
    (
      SD,
      {'train__keep_best': 'harder/pass@1', 'train__eval_every': 0},
      'keep_best=.harder/pass@1. does nothing when train.eval_every=0',
    ),
    (SD, {'model__lora__alpha': 3.0}, 'alpha=3.0 does nothing when rank=0'),
  ],
)
def test_an_option_that_would_do_nothing_is_an_error(method, changes, says):
  with pytest.raises(c.ConfigError, match=says):
    validate(replace(c.Config(method=method()), **changes))


def test_what_needs_old_rollouts_acts_after_the_first_update():
  high, dual = Clip(high=0.28), Clip(dual=3.0)
  validate(replace(c.Config(method=RL(policy_loss=high)), **OLD))
  validate(replace(c.Config(method=RL(policy_loss=dual)), train__epochs=2))


# ------------------------------------------------ what was spelled otherwise


SECTIONS = {
  'sd': ('method', SD()),
  'rl': ('method', RL()),
  'mix': ('method', MIX()),
  'demonstrations': ('method.demonstrations', SD()),
  'loss': ('loss', SD()),
}
"""Where the options stand that were spelled otherwise, and for what method."""


def place_of(new):
  """The section that has the option which an old one became."""
  name = new.partition('=')[0]
  for path, method in SECTIONS.values():
    config = c.Config(method=method)
    section = dict(sections(config))[f'{path}.']
    if hasattr(section, name):
      return path, config, name
  raise AssertionError(f'no section has {name!r}')


@pytest.mark.parametrize('old', RENAMED)
def test_an_old_option_names_the_new_one_which_is_right(old):
  new = RENAMED[old]
  path, config, name = place_of(new)
  values = to_dict(config)
  section = values
  for part in path.split('.'):
    section = section[part]
  section[old] = 0.5
  says = f'unknown option {path}.{old} (it is {new} now)'
  with pytest.raises(c.ConfigError, match=re.escape(says)):
    from_config_dict(json.loads(json.dumps(values)))
  # What is named can be written so.
  family = getattr(dict(sections(config))[f'{path}.'], name)
  for text in re.findall("'(.+?)'", new.partition('=')[2].replace('...', '1')):
    called = text.partition('(')[0]
    assert called in type(family).choices, new
    for option in re.findall(r'(\w+)=', text):
      kind = type(family).choices[called]
      assert option in {f.name for f in dataclasses.fields(kind)}, new


@pytest.mark.parametrize(
  ('option', 'old'),
  [
    ('method.support', 'student_top_k'),
    ('method.support', 'teacher_top_k'),
    ('method.teacher', 'trust_region'),
  ],
)
def test_an_old_value_names_the_new_one(option, old):
  says = rf"{option}='{old}'.*It is {re.escape(RENAMED_VALUES[old])} now"
  with pytest.raises(c.ConfigError, match=says):
    from_config_dict(broken(option, old))


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
    text = str(value) if isinstance(value, Option) else value
    assert flat[option] == text, option
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
  bad = replace(config, method__policy_loss=Clip(high=0.3))
  with pytest.raises(c.ConfigError, match='all ratios are 1'):
    validate(bad)


def test_options_of_the_other_method_do_not_exist():
  with pytest.raises(
    c.ConfigError, match=r"unknown option method\.teacher, .* method 'sd'"
  ):
    from_config_dict(broken('method.teacher', 'current', variant='rl'))
  with pytest.raises(c.ConfigError, match=r'unknown option method\.ema_rate'):
    from_config_dict(broken('method.ema_rate', 0.1, variant='rl'))


def test_what_is_absent_keeps_its_default():
  values = to_dict(replace(c.Config(), optimizer__b1=0.5))
  del values['optimizer']['b2'], values['mesh']
  assert from_config_dict(values) == replace(c.Config(), optimizer__b1=0.5)


def test_replace_reaches_into_sections():
  config = replace(c.Config(), method__teacher=EMA(0.5), seed=3)
  assert isinstance(config.method, SD)
  assert config.method.teacher.rate == 0.5 and config.seed == 3
  assert config.method.divergence == ReverseKL()


def test_a_value_may_be_given_as_its_text():
  config = replace(c.Config(), method__divergence='jsd(alpha=0.3)')
  assert config == replace(c.Config(), method__divergence=JSD(0.3))
  assert to_dict(config)['method']['divergence'] == 'jsd(alpha=0.3)'
  validate(config)
  with pytest.raises(c.ConfigError, match='alpha=1.0'):
    replace(config, method__divergence='jsd(alpha=1.0)')
  frozen = replace(c.Config(), method__teacher='frozen')
  validate(frozen)
  with pytest.raises(c.ConfigError, match='frozen has no option .rate'):
    replace(frozen, method__teacher='frozen(rate=0.2)')


def test_every_option_is_documented():
  for kind in (
    c.Model,
    c.ConceptGraph,
    c.Rollout,
    Demonstrations,
    c.SelfDistillation,
    c.PolicyGradient,
    c.Mix,
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
  ('strategy', 'says'),
  [
    (Uniform(), 'drawn uniformly from the other correct rollouts, '),
    (
      Uniform(exclude_same_text=True),
      "rollouts whose text is not the rollout's",
    ),
    (External('x'), 'drawn from a file by frequency'),
    (External('x', 'distinct'), 'drawn from a file, each text equally likely'),
  ],
  ids=str,
)
def test_loss_in_words_says_what_is_shown(strategy, says):
  config = c.Config(method=SD(demonstrations=Demonstrations(strategy)))
  assert says in loss_in_words(config)


def test_loss_in_words_names_direction_teacher_and_weights():
  words = loss_in_words(c.Config())
  assert 'KL(student || teacher)' in words and 'rate 0.05' in words
  words = loss_in_words(
    c.Config(method=RL(diversity=Bonus(0.25)), loss=c.Loss(kl=K3(0.01)))
  )
  assert '0.25 x the share' in words and '0.01 x KL' in words
  charged = replace(c.Config(method=RL()), **CHARGED)
  words = loss_in_words(charged)
  assert 'A less 0.1 x K' in words and 'over the rollout' in words
  words = loss_in_words(replace(charged, loss__kl=KLReward(0.1, to_go=True)))
  assert 'from the token on' in words and 'x KL(' not in words
  assert '(R - mean) / (std + 0.0001)' in words
  words = loss_in_words(
    c.Config(
      method=RL(policy_loss=CISPO(drop_high=0.3), advantage=GRPO('sample'))
    )
  )
  assert '(R - mean) / (sample std + 0.0001)' in words
  assert 'A log p, 0 where r is above 1.3 with A > 0; A = ' in words
  words = loss_in_words(c.Config(method=MIX(rule=SDPG(positive_only=True))))
  assert 'L_rl + w L_sd where A > 0, w = 0.5' in words
