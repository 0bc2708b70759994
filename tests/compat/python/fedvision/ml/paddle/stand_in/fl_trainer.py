"""A trainer: takes 0.1's arguments and no others, joins each round at the scheduler, and leaves what it saw in `seen.json`."""

import argparse
import json
import os
import sys

from fedvision.grpc_peer import SchedulerClient, leave_a_process

FILES = ["startup-program", "main-program", "send-program", "recv-program", "feed-names", "target-names", "feeds", "strategy"]

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--scheduler-ep", required=True)
parser.add_argument("--trainer-id", type=int, required=True)
parser.add_argument("--trainer-ep", required=True)
for name in FILES + ["config", "algorithm-config"]:
    parser.add_argument("--" + name, required=True)
args = parser.parse_args()


def first_line(path):
    with open(path, "rb") as f:
        return f.readline().decode().strip()


with open(args.config) as f:
    config = json.load(f)
with open(args.algorithm_config) as f:
    algorithm_config = f.read()
with open(os.path.join(os.environ["FEDVISION_DATA_BASE"], "data.txt")) as f:
    data = f.read()
leave_a_process()

statuses = []
scheduler = SchedulerClient(args.scheduler_ep, args.trainer_ep)
statuses.append(scheduler.call("init"))
# Twice by one name, and a round that is not the next one: both are refused, and nothing else comes of it.
statuses.append(scheduler.call("init"))
statuses.append(scheduler.call("join", 4294967295))
for step in range(config["max_iter"] + 1):
    statuses.append(scheduler.call("join", step))
    statuses.append(scheduler.call("finish"))
scheduler.close()

seen = {
    "argv": sys.argv[1:],
    "files": {name: first_line(getattr(args, name.replace("-", "_"))) for name in FILES},
    "config": config,
    "algorithm_config": algorithm_config,
    "data": data,
    "statuses": statuses,
}
with open("seen.json", "w") as f:
    json.dump(seen, f)
