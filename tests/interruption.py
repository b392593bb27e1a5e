"""Commands that are killed, interrupted or run twice, in processes that share one import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

KILLS = int(os.environ.get("FLOWTURBO_KILLS", "6"))  # of each command, in tests marked slow

_SCRIPT = """
import json, os, random, signal, sys, tempfile, time
import torch, accelerate, matplotlib.figure
from flowturbo.cli import main

torch.set_num_threads(1)
once, every = json.loads(sys.argv[1])

def start(command):
    said = tempfile.TemporaryFile("w+")
    begun, begin = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        code = 1
        os.write(begin, b"x")
        try:
            main(command)
        except SystemExit as e:
            code = e.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.read(begun, 1)
    os.close(begun)
    os.close(begin)
    return child, said

def ended(child, said):
    status = os.waitpid(child, 0)[1]
    said.seek(0)
    return [os.waitstatus_to_exitcode(status), said.read()]

before = time.perf_counter()
whole = ended(*start(once))
assert whole[0] == 0, whole[1]
seconds = time.perf_counter() - before
chance = random.Random(0)
found = {}
for how, (again, stops) in every.items():
    stopped = []
    for share in [(i + chance.random()) / stops for i in range(stops)]:
        child, said = start(again)
        time.sleep(share * seconds)
        if how == "twice":
            stopped += [ended(*start(again)), ended(child, said)]
        else:
            os.kill(child, getattr(signal, how))
            stopped.append(ended(child, said))
    found[how] = {"stopped": stopped, "last": ended(*start(again))}
print(json.dumps(found))
"""


@dataclass
class Interrupted:
    """How interrupted runs ended, each an exit status (or minus a signal) and what it said."""

    stopped: list[tuple[int, str]]
    last: tuple[int, str]

    @property
    def killed(self) -> int:
        """How many runs did not end by themselves."""
        return sum(code not in (0, 1, 2) for code, _ in self.stopped)


def interrupted(once: list[Any], every: dict[str, tuple[list[Any], int]]) -> dict[str, Interrupted]:
    """Run ``once`` undisturbed; then commands stopped at moments spread over its time, then whole.

    ``every`` holds the commands, and how often to stop them, by the way: a signal, or "twice",
    which starts a second run while the first works.
    """
    texts = lambda command: [str(a) for a in command]
    arguments = [texts(once), {how: (texts(c), stops) for how, (c, stops) in every.items()}]
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for ends in found.values():
        assert all("Traceback" not in said for _, said in ends["stopped"]), ends
        assert ends["last"][0] == 0, ends["last"][1]
    return {how: Interrupted(**ends) for how, ends in found.items()}
