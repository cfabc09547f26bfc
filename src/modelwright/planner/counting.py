"""`count`: from a config to its counts, as its family counts them."""

from modelwright.configs import CheckedConfig
from modelwright.errors import ConfigError
from modelwright.families import families, find_family, resolve
from modelwright.planner.counts import Counts


def count(config: CheckedConfig) -> Counts:
    """What the model of this config counts, its language-model head included; nothing is built or read.

    Raises:
        ConfigError: the planner knows no model of this config.
    """
    family = find_family(config)
    if family is None:
        known = ", ".join(f'"{family.model_type}"' for family in families())
        raise ConfigError(f'model_type must be one of {known} to be counted; got "{config.model_type}"')
    return resolve(family.counts)(config)
