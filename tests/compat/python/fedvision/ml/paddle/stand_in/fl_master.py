"""The compile step: writes what a Paddle program writes, with contents that say where they belong.

`stand_in` of the config asks for faults: `compile` is "fail" or "hang", `leave_out` a file that is not written, `feeds` the trainers
that have some (default all), `bytes` the size of each main program.
"""

import argparse
import json
import os
import sys
import time

from fedvision.grpc_peer import leave_a_process

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--ps-endpoint", required=True)
parser.add_argument("--algorithm-config", required=True)
parser.add_argument("--config", required=True)
args = parser.parse_args()

with open("argv.json", "w") as f:
    json.dump(sys.argv[1:], f)
with open(args.config) as f:
    config = json.load(f)
with open(args.algorithm_config) as f:
    assert f.read(), "an empty algorithm config"
wanted = config.get("stand_in", {})
print("compiling for", args.ps_endpoint)
if "compile" in wanted:
    leave_a_process()
    print("a line before\nthe compile step was told to", wanted["compile"], file=sys.stderr, flush=True)
    time.sleep(3600 if wanted["compile"] == "hang" else 0)
    sys.exit(3)


def write(path, content):
    if not path.endswith(wanted.get("leave_out", "/")):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as out:
            out.write(content)


for i in range(config["worker_num"]):
    where = f"compile/trainer{i}/"
    for kind in ["main", "startup", "send", "recv"]:
        content = f"{kind} of trainer {i}\n".encode()
        if kind == "main":
            content += bytes(range(256)) * (wanted.get("bytes", 0) // 256)
        write(where + f"trainer.{kind}.program", content)
    for name in ["feed_names", "target_names", "strategy.pkl"]:
        write(where + name, f"{name} of trainer {i}".encode())
    if i in wanted.get("feeds", range(config["worker_num"])):
        write(where + "feeds.pkl", f"feeds of trainer {i}".encode())
for kind in ["main", "startup"]:
    write(f"compile/server0/server.{kind}.program", f"{kind} of the server at {args.ps_endpoint}".encode())
