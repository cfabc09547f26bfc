"""`count`: from a config to its counts, as its family counts them."""

from modelwright.configs import CheckedConfig
from modelwright.errors import ConfigError
from modelwright.families import families, find_family, resolve
from modelwright.planner.counts import Counts

MOST_PARAMETERS = 2**63 - 1
"""More than 64 bits can address; published models have a few times 2**40."""


def count(config: CheckedConfig) -> Counts:
    """What the model of this config counts, its language-model head included; nothing is built or read.

    Raises:
        ConfigError: the planner knows no model of this config, or none could be that large.
    """
    family = find_family(config)
    if family is None:
        known = ", ".join(f'"{family.model_type}"' for family in families())
        raise ConfigError(f'model_type must be one of {known} to be counted; got "{config.model_type}"')
    counts: Counts = resolve(family.counts)(config)
    total = counts.parameters.total
    if total > MOST_PARAMETERS:
        raise ConfigError(
            f"a model has at most 2**63 - 1 parameters, as many bytes as 64 bits address, and the sizes of this config "
            f"make about {total:.3g}"
        )
    return counts
