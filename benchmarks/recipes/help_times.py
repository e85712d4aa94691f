"""What each help screen costs: CPU seconds of a process, the best of 5 fresh ones."""

import resource
import subprocess
import sys

from compress.cli.main import COMMANDS


def spent() -> float:
    """CPU seconds of all children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


print("| command | seconds |\n| --- | ---: |")
for name in (None, *COMMANDS):
    argv = [sys.executable, "-m", "compress", *([name] if name else []), "--help"]
    times = []
    for _ in range(5):
        begun = spent()
        subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
        times.append(spent() - begun)
    print(f"| {name or '(none)'} | {min(times):.2f} |")
