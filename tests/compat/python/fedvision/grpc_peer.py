"""gRPC for the stand-ins: the test binary run again as a child process, since nothing but the standard library may be assumed.

FEDBROKER_TEST_PEER is the JSON argument vector of the test binary; the name of one of its process functions is added.
"""

import json
import os
import subprocess
import sys


def command(function):
    return json.loads(os.environ["FEDBROKER_TEST_PEER"]) + ["paddle_fl::scheduler::" + function]


def serve_scheduler(endpoint, worker_num, max_iter):
    """Serve fedvision.paddle_fl.Scheduler until the last round is done."""
    env = dict(os.environ, SCHEDULER_EP=endpoint, WORKER_NUM=str(worker_num), MAX_ITER=str(max_iter))
    subprocess.run(command("scheduler_process"), env=env, stdin=subprocess.DEVNULL, check=True)


class SchedulerClient:
    """The calls of a trainer; each gives the name of the status."""

    def __init__(self, endpoint, name):
        env = dict(os.environ, SCHEDULER_EP=endpoint, TRAINER_EP=name)
        self.peer = subprocess.Popen(
            command("trainer_process"), env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def call(self, *words):
        self.peer.stdin.write(" ".join(map(str, words)) + "\n")
        self.peer.stdin.flush()
        for line in self.peer.stdout:
            if line.startswith("= "):
                return line[2:].strip()
        sys.exit("the gRPC peer ended")

    def close(self):
        self.peer.stdin.close()
        for _ in self.peer.stdout:
            pass
        if self.peer.wait() != 0:
            sys.exit("the gRPC peer failed")


def leave_a_process():
    """Start a process that nobody ends, in a session of its own, and leave its number for the test."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(3600)"]
    child = subprocess.Popen(sleeper, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open("left.part", "w") as f:
        f.write(str(child.pid))
    os.rename("left.part", "left.pid")
