"""Compiling ahead of the loop, and keeping what was compiled."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.training import compilations
from sdjax.training.programs import Program, ShapeError, finish_compiling


def test_a_program_takes_the_shapes_it_was_compiled_for():
  calls = []

  def double(tree):
    calls.append(1)
    return {'twice': 2 * tree['x']}

  program = Program('double', double)
  counted = compilations.Compilations()
  for size in (3, 4, 3):
    shape = jax.ShapeDtypeStruct((size,), jnp.float32)
    found = program.compile({'x': shape})
    assert found == {'twice': jax.ShapeDtypeStruct((size,), jnp.float32)}
  finish_compiling()
  assert len(calls) == counted.count == 2 and counted.seconds > 0
  for size in (3, 4):
    got = program({'x': np.arange(size, dtype=np.float32)})
    np.testing.assert_array_equal(got['twice'], 2.0 * np.arange(size))
  assert len(calls) == counted.count == 2
  for wrong in (np.zeros(5, np.float32), np.zeros(3, np.int32)):
    with pytest.raises(ShapeError, match=r'double step was not .*\(5,\)|int32'):
      program({'x': wrong})
  assert len(calls) == counted.count == 2


def test_a_program_that_was_not_compiled_is_its_jit():
  program = Program('next', lambda x: x + 1)
  assert program(1) == 2 and program(jnp.zeros(2)).tolist() == [1, 1]


def test_what_was_compiled_elsewhere_has_another_name(monkeypatch):
  here = compilations.machine()
  assert here.startswith('cpu-') and here == compilations.machine()
  monkeypatch.setattr(compilations, '_processor', lambda: ['flags: avx9'])
  assert compilations.machine() != here
  monkeypatch.undo()
  monkeypatch.setattr(jax, '__version__', '9.9.9')
  assert compilations.machine() != here


KEEP = """
import os, sys
import jax, jax.numpy as jnp
jax.jit(lambda x: x + 1)(1)  # in a notebook, something was compiled before
from sdjax.training import compilations
compilations.SHORTEST = 0
compilations.keep_compilations(sys.argv[1] == 'keep')
heard = []
jax.monitoring.register_event_listener(lambda event, **_: heard.append(event))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))
print(jax.config.values['jax_compilation_cache_dir'])
print(heard.count('/jax/compilation_cache/cache_hits') > 0)
"""


def test_compiled_code_is_kept_for_the_next_process(tmp_path, monkeypatch):
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  monkeypatch.setenv('SDJAX_CACHE', str(tmp_path / 'cache'))

  def run(keep):
    done = subprocess.run(
      [sys.executable, '-c', KEEP, keep],
      capture_output=True,
      text=True,
      check=True,
    )
    return done.stdout.split()

  assert run('not') == ['None', 'False'] and not list(tmp_path.iterdir())
  folder = tmp_path / 'cache' / 'compilations' / compilations.machine()
  assert run('keep') == [str(folder), 'False'] and any(folder.iterdir())
  assert run('keep') == [str(folder), 'True']
  # Somebody's own choice comes first.
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'own'))
  assert run('keep')[0] == str(tmp_path / 'own')
