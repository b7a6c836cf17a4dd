"""Problems so small that every answer is listed, and their tabular model.

The model has one free next-token distribution for every prefix.

Prefixes are the nodes of a tree, numbered as in a heap: the empty one is 0
and token v leads from node n to node V n + 1 + v. A context is one token, the
number of the demonstration it shows; the last number means none.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.forecast import closed_forms as theory
from sdjax.models.cache import KV

ONE_TOKEN = (40, 1, 6)
"""Vocabulary, length and number of correct answers of a problem."""

THREE_TOKENS = (3, 3, 5)


def num_nodes(vocab, length):
  """Prefixes that have a next token, of answers of `length` tokens."""
  return sum(vocab**t for t in range(length))


def answers(vocab, length):
  """Every answer, int [V ** T, T], in the order of `sequence_logp`."""
  return np.array(list(itertools.product(range(vocab), repeat=length)))


def nodes_of(answers_YT, vocab):
  """The prefix before each token, int [Y, T]."""
  nodes = np.zeros(answers_YT.shape, int)
  for t in range(1, answers_YT.shape[1]):
    nodes[:, t] = vocab * nodes[:, t - 1] + 1 + answers_YT[:, t - 1]
  return nodes


def sequence_logp(logp_NV, length):
  """Log-probability [.., V ** T] of every answer, of [.., N, V]."""
  vocab = logp_NV.shape[-1]
  listed = answers(vocab, length)
  return logp_NV[..., nodes_of(listed, vocab), listed].sum(-1)


def table_model(logits):
  """A model of the table, and its weights.

  Args:
    logits: [contexts, N, V], of the next token after each prefix in each
      context.

  Returns:
    `apply_fn`, which generates answers of any length up to the tree's, and
    its weights, [contexts * N, V].
  """
  contexts, nodes, vocab = logits.shape

  def apply_fn(params, x, *, method, prefix=None, suffix=None, pad_QG=None):
    del pad_QG
    if method == 'head':
      return x @ params
    if prefix is None:
      row = x * nodes  # a context: the number of its demonstration
    else:
      context = prefix.kv.k[0, :, :, -1, 0, 0].astype(jnp.int32)
      if prefix.index is not None:
        context = jnp.take_along_axis(context, prefix.index, axis=1)
      node = jnp.zeros(x.shape[:2], jnp.int32)
      if suffix is not None:
        past = suffix.kv.k[0, ..., 0, 0].astype(jnp.int32)
        for t in range(past.shape[-1]):
          child = vocab * node + 1 + past[..., t]
          node = jnp.where(t < suffix.filled, child, node)
      reached = []
      for t in range(x.shape[-1]):
        node = vocab * node + 1 + x[..., t]
        reached.append(node)
      row = context[..., None] * nodes + jnp.stack(reached, axis=-1)
    seen = x[None, ..., None, None].astype(jnp.float32)
    return jax.nn.one_hot(row, contexts * nodes), KV(k=seen, v=seen)

  return apply_fn, jnp.asarray(logits, jnp.float32).reshape(-1, vocab)


def normalise(logits):
  return np.asarray(jax.nn.log_softmax(np.asarray(logits, np.float32)), float)


@functools.cache
def problem(vocab, length, num_correct, seed=0):
  """A base policy that copies what it is shown, and its correct answers.

  A demonstration makes its own next token likelier wherever the answer has
  followed it so far, and a little likelier everywhere else.

  Returns:
    log-probabilities [C + 1, N, V] under each correct answer and, last, none;
    the rewards [Y]; the probability [C] of each demonstration.
  """
  rng = np.random.default_rng(seed)
  nodes = num_nodes(vocab, length)
  base_NV = rng.normal(size=(nodes, vocab))
  listed = answers(vocab, length)
  correct = np.sort(rng.choice(len(listed), num_correct, replace=False))
  tables = []
  for answer in listed[correct]:
    logits = base_NV.copy()
    own_path = nodes_of(answer[None], vocab)[0]
    depth = np.digitize(
      np.arange(nodes), [num_nodes(vocab, t + 1) for t in range(length)]
    )
    logits[np.arange(nodes), answer[depth]] += 0.8
    logits[own_path, answer] += 4
    tables.append(logits)
  logp_CNV = normalise([*tables, base_NV])
  reward = np.zeros(len(listed))
  reward[correct] = 1
  base = np.exp(sequence_logp(logp_CNV[-1], length))
  return logp_CNV, reward, base[correct] / base[correct].sum()


def sequence_distributions(vocab, length, num_correct):
  """logp0 [Y], logp_given [Y, C], rewards, demonstrations' probabilities."""
  logp_CNV, reward, demo_prob = problem(vocab, length, num_correct)
  logp = sequence_logp(logp_CNV, length)
  return logp[-1], logp[:-1].T, reward, demo_prob


def sequence_optimum(vocab, length, num_correct, beta):
  """Props. 2 and 4, over whole answers."""
  sizes = (vocab, length, num_correct)
  logp0, given, _, demo_prob = sequence_distributions(*sizes)
  return theory.sdsd_optimum(logp0, theory.pcmi(given, logp0) @ demo_prob, beta)


def token_optimum(vocab, length, num_correct, beta, **options):
  """Prop. 5: the best policy after each prefix, multiplied along answers."""
  logp_CNV, _, demo_prob = problem(vocab, length, num_correct)
  given_NVC, logp0_NV = np.moveaxis(logp_CNV[:-1], 0, -1), logp_CNV[-1]
  best_NV = theory.sdsd_optimum(
    logp0_NV, theory.pcmi(given_NVC, logp0_NV) @ demo_prob, beta, **options
  )
  return np.exp(sequence_logp(np.log(best_NV), length))


def total_variation(p, q):
  return 0.5 * np.abs(np.asarray(p, float) - np.asarray(q, float)).sum()
