"""MindFormers' run YAML as the values of a `RunConfig`; each field acts, is listed as without effect, or is refused."""

from modelwright.configs.run.mindformers.translate import Translation, is_mindformers, translate

__all__ = ["Translation", "is_mindformers", "translate"]
