"""What a run is: the options, how they are read and checked, the presets."""

from sdjax.config.convert import from_config_dict as from_config_dict
from sdjax.config.convert import replace as replace
from sdjax.config.convert import to_config_dict as to_config_dict
from sdjax.config.convert import to_dict as to_dict
from sdjax.config.schema import *  # noqa: F403
from sdjax.config.schema import METHODS as METHODS
