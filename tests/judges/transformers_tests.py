"""The four families judged by transformers' own tests of models and configs, which its source package ships.

    pip download --no-deps --no-binary transformers --no-build-isolation transformers==VERSION && tar xzf transformers-*
    pip install --target EXTRA parameterized
    PYTHONPATH=EXTRA python -m tests.judges.transformers_tests transformers-VERSION [PYTEST ARGUMENTS]

VERSION is that of the installed transformers. What the source package leaves out, its tests of generation and of
exporters, is left out here: ``tests/parity`` compares generation argument by argument.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

CASES = Path(__file__).with_name("transformers_cases.py")
PACKAGE = "their_tests"
LEFT_OUT = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {'return_dict': False, 'output_hidden_states': True, 'dtype': 'float16',\n"
        "    'chunk_size_feed_forward': 5, 'architectures': ['BertModel'], 'id2label': {0: 'label'},\n"
        "    'label2id': {'label': '0'}, 'problem_type': 'regression'}\n"
    ),
}
"""What the tests import and the package does not have."""


def package(source: Path, folder: Path) -> None:
    """Lay the tests of a source package down as a package of its own name, which is not ours."""
    shutil.copytree(source / "tests", folder / PACKAGE)
    shutil.copytree(source / "src", folder / "src")  # a test looks for the library beside it
    for name, text in {"__init__.py": "", **LEFT_OUT}.items():
        path = folder / PACKAGE / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def main() -> int:
    source, arguments = Path(sys.argv[1]), sys.argv[2:]
    with TemporaryDirectory() as folder:
        package(source, Path(folder))
        paths = [folder, os.getcwd(), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        apart = ["-c", os.devnull, "--rootdir", folder, "--noconftest"]  # from the settings of our own tests
        command = [sys.executable, "-m", "pytest", str(CASES), *apart, "-q", "-W", "ignore", "--tb=line", "-rfEs"]
        return subprocess.run([*command, *arguments], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
