import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# The plain example in Python is what the breaches are planted in.
sys.path.insert(0, str(ROOT / "examples" / "action-servers" / "python"))
