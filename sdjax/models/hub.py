"""Models on the Hugging Face hub, fetched once and then read from a folder."""

import re
from pathlib import Path

from sdjax.models.config_fields import CheckpointError

SMALL_FILES = (
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'tokenizer.model',
  'chat_template.jinja',
  'modules.json',
  'sentence_bert_config.json',
  '1_Pooling/config.json',
)
"""All that is needed of a model but its weights."""

# Some models keep a second copy of their weights under another name.
WEIGHT_FILES = ('model*.safetensors', 'model.safetensors.index.json')


def is_hub_name(path: str | Path) -> bool:
  """Returns whether a path names a model on the hub, as `owner/model`.

  Where it exists on the disk, it names what is there.
  """
  name = str(path)
  looks_so = re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', name) is not None
  return looks_so and not name.endswith('.gguf') and not Path(name).exists()


def hub_folder(name: str, weights: bool = True) -> Path:
  """Fetches a model `owner/model`, or finds it where it was kept before.

  Returns the folder in the hub's own cache (`$HF_HOME`), with or without the
  weights. What is there already is not fetched again; without a network it has
  to be there. Raises CheckpointError if the hub cannot be reached or does not
  give the model away, and the cache does not hold it.
  """
  # Takes a second to import, and most runs start from a folder.
  from huggingface_hub import snapshot_download

  try:
    folder = snapshot_download(
      name,
      allow_patterns=[*SMALL_FILES, *(WEIGHT_FILES if weights else ())],
    )
  # Network, permission, name and disk: each library has exceptions of its own.
  except Exception as error:
    reason = str(error).strip().split('\n')[0]
    raise CheckpointError(
      f'{name!r} is no folder here, and as a model on the hub it could not be '
      f'fetched ({type(error).__name__}: {reason}). If it is one, check its '
      'name and the network; a gated model needs `hf auth login`. For a '
      f'machine without network, run `hf download {name} --local-dir FOLDER` '
      'elsewhere, copy the folder and give its path. If it is a folder, check '
      'the path.'
    ) from error
  return Path(folder)
