"""At a failpoint a process dies or hangs when it was told to, and not before."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sec.node import failpoints

COMES = """
import sys
from pathlib import Path
from sec.node import failpoints
failpoints.arm(Path(sys.argv[1]))
for point in sys.argv[2:]:
    print(point, flush=True)
    failpoints.reach(point)
print("done")
"""


def comes(file: Path, *points: str) -> tuple[int, list[str]]:
    """What a process ends with that comes to these points, and those it has come to."""
    done = subprocess.run([sys.executable, "-c", COMES, str(file), *points], capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.returncode, done.stdout.split()


def test_a_process_dies_when_it_comes_to_its_point_for_the_nth_time(tmp_path: Path) -> None:
    file = tmp_path / "sec-1"
    file.write_text("after_commit SIGKILL 2")
    came = comes(file, "after_commit", "after_apply", "after_commit", "after_commit")
    assert came == (-signal.SIGKILL, ["after_commit", "after_apply", "after_commit"])
    assert not file.exists(), "so that who wrote it knows that it was read"


@pytest.mark.parametrize("order", ["", None])
def test_without_an_order_nothing_happens(tmp_path: Path, order: str | None) -> None:
    file = tmp_path / "sec-1"
    if order is not None:
        file.write_text(order)
    assert comes(file, *failpoints.POINTS) == (0, [*failpoints.POINTS, "done"])
    assert not file.exists()
