"""The scripts on a device that isn't there; what is asked of them stands in on_standin.py."""
from pathlib import Path

from forks import Fork


def test_on_a_stand_in_device():
    script = Path(__file__).with_name("on_standin.py")
    fork = Fork("import pytest, sys\nsys.exit(pytest.main(sys.argv[1:]))", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", script)
    assert fork.wait(400) == 0 and "6 passed" in fork.said(), fork.said()[-6000:]
