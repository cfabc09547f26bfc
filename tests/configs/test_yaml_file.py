"""YAML files that cannot be read: a sentence with the file's name and the reason."""

import pytest

from modelwright.configs.yaml_file import read_yaml
from modelwright.errors import ConfigError


def test_a_file_that_is_not_there_and_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"^nope\.yaml cannot be read: No such file or directory$"):
        read_yaml("nope.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory$"):
        read_yaml(tmp_path)


def test_bytes_that_are_no_text_and_values_that_are_no_mapping(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"run\.yaml cannot be read as YAML: 'utf-8' codec"):
        read_yaml(file)
    file.write_text("- a")
    with pytest.raises(ConfigError, match=r"run\.yaml must hold a mapping, and holds a list"):
        read_yaml(file)
