"""Inputs of a mixing rule whose log-ratio u is given."""

from typing import Any

import jax.numpy as jnp

from sdjax.objectives.mixing import Inputs, TeacherTokens


def inputs_of(
  advantage: Any, log_ratio: Any, weight: Any, **changes: Any
) -> Inputs:
  """One teacher of every rollout, and a behaviour policy of log-probability 0.

  Args:
    advantage: [Q, G, T], A.
    log_ratio: [Q, G, T], nats, u: the teacher's log-probability.
    weight: w.
    **changes: other fields of `Inputs`.
  """
  u_QGT = jnp.asarray(log_ratio)
  everyone = jnp.ones(u_QGT.shape[:2], bool)
  found = jnp.ones((*u_QGT.shape, 1), bool)
  fields = {
    'advantage': jnp.asarray(advantage),
    'weight': jnp.asarray(weight),
    'counted': jnp.ones(u_QGT.shape, bool),
    'samples': everyone,
    'taught': everyone,
    'correct': None,
    'strategy': None,
    'base_logp': jnp.zeros_like(u_QGT),
    'num_contrast': 0,
    'aggregation': 'token_mean',
    'tokens': lambda: TeacherTokens(
      u_QGT[..., None], jnp.zeros(found.shape), found
    ),
  }
  return Inputs(**fields | changes)
