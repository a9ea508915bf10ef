"""The scripts on a device that isn't there; what is asked of them stands in on_standin.py."""
import subprocess
import sys
from pathlib import Path


def test_on_a_stand_in_device():
    answer = subprocess.run([sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(Path(__file__).with_name("on_standin.py"))],
                            capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert answer.returncode == 0, answer.stdout[-6000:]
    assert "6 passed" in answer.stdout
