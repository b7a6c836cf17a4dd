"""What is fetched from the hub, and what is said when it cannot be."""

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from sdjax.models import hub
from sdjax.models.families import CheckpointError

PUBLISHED = [
  'README.md',
  'chat_template.jinja',
  'config.json',
  'consolidated.safetensors',
  'generation_config.json',
  'merges.txt',
  'model-00001-of-00002.safetensors',
  'model-00002-of-00002.safetensors',
  'model.safetensors.index.json',
  'onnx/config.json',
  'onnx/model.onnx',
  'original/model.safetensors',
  'pytorch_model.bin',
  'tokenizer.json',
  'tokenizer_config.json',
  'vocab.json',
]
SMALL = [
  'chat_template.jinja',
  'config.json',
  'generation_config.json',
  'merges.txt',
  'tokenizer.json',
  'tokenizer_config.json',
  'vocab.json',
]


def test_only_what_is_needed_is_fetched(monkeypatch, tmp_path):
  fetched = []

  def download(name, allow_patterns):
    assert name == 'some/model'
    fetched.append(
      list(filter_repo_objects(PUBLISHED, allow_patterns=allow_patterns))
    )
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  assert hub.hub_folder('some/model', weights=False) == tmp_path
  assert hub.hub_folder('some/model') == tmp_path
  weights = [name for name in PUBLISHED if name.startswith('model')]
  assert fetched == [SMALL, sorted([*SMALL, *weights])]


def test_what_cannot_be_fetched(monkeypatch):
  def download(name, **_):
    raise ConnectionError(f'no route to {name}\nand more')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  with pytest.raises(
    CheckpointError,
    match="'some/model' is no folder.*no route to some/model[)].*hf download",
  ):
    hub.hub_folder('some/model')


def test_hub_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'runs' / 'sd').mkdir(parents=True)
  for name in ('Qwen/Qwen3-0.6B', 'deepseek-ai/DeepSeek-R1', 'runs/other'):
    assert hub.is_hub_name(name)
  for name in (
    'runs/sd',
    str(tmp_path / 'model'),
    './a/b',
    '../a',
    'a/b/c',
    'a',
    'a/b.gguf',
    'builtin:concept_graph_base',
  ):
    assert not hub.is_hub_name(name)
