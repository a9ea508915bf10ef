"""What the benchmarks have in common: fresh processes, and the memory of this one."""
import json
import os
import subprocess
import sys
from pathlib import Path


def in_a_fresh_process(only: list, threads: int) -> dict:
    """What this script prints last, as JSON, when it is run again with its flags and `--only`, what to measure."""
    command = [sys.executable, *sys.argv, "--only", json.dumps(only)]
    done = subprocess.run(command, capture_output=True, text=True,
                          env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)})
    if done.returncode:
        sys.exit(f"{only[0]} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
