"""schemathesis on the server's own description: no status but those that it names, no body but those that it describes.

python -m venv JUDGE && JUDGE/bin/pip install schemathesis
JUDGE/bin/python -m tests.judges.openapi_fuzz [--examples N]
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tests.judges.server import KEY, server


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100, help="requests drawn for each path")
    asked = parser.parse_args()
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with server("vl2-nano", "--default-max-tokens", "4", "--responses-store", "8", "--any-model-name") as url:
        command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}/openapi.json"]
        command += ["--header", f"Authorization: Bearer {KEY}", "--checks", checks]
        command += ["--max-examples", str(asked.examples), "--phases", "examples,coverage,fuzzing"]
        # 501 is what a path that is not served says, 503 what a server says that is full: both are documented
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
