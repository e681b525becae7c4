"""Makes importable what the tests of the core, of whole clusters and of the client share, and the examples."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent

for _folder in (TESTS / "core", TESTS / "cluster", TESTS / "client", TESTS.parent):
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))
