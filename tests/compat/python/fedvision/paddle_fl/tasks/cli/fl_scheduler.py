"""The aggregator: starts the parameter server beside itself, as 0.1 does, and serves the rounds. Never ends the parameter server."""

import argparse
import json
import os
import subprocess
import sys

from fedvision.grpc_peer import serve_scheduler

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--scheduler-ep", required=True)
parser.add_argument("--startup-program", required=True)
parser.add_argument("--main-program", required=True)
parser.add_argument("--config", required=True)
args = parser.parse_args()

with open(args.config) as f:
    config = json.load(f)
server = subprocess.Popen(
    [
        sys.executable,
        "-m",
        "fedvision.paddle_fl.tasks.cli.fl_server",
        "--startup-program=" + args.startup_program,
        "--main-program=" + args.main_program,
    ],
    start_new_session=True,
)
with open("left.part", "w") as f:
    f.write(str(server.pid))
os.rename("left.part", "left.pid")
serve_scheduler(args.scheduler_ep, config["worker_num"], config["max_iter"])
if server.poll() is not None:
    sys.exit("the parameter server ended")
with open("seen.json", "w") as f:
    json.dump({"argv": sys.argv[1:], "config": config}, f)
