"""Print the image's requirements: the runtime dependencies at their tested versions."""

import re
import sys
import tomllib
from pathlib import Path


def pins(project: str, constraints: str) -> list[str]:
    """Return the constraints of the project's own dependencies, without extras."""
    lines = tomllib.loads(project)["project"]["dependencies"]
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in lines}
    exact = [line for line in constraints.splitlines() if "==" in line]
    return sorted(line for line in exact if line.split("==")[0].lower() in names)


if __name__ == "__main__":
    sys.stdout.write("\n".join(pins(*(Path(name).read_text() for name in sys.argv[1:]))) + "\n")
