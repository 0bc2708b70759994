"""The parameter server: runs until somebody ends it."""

import argparse
import time

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--startup-program", required=True)
parser.add_argument("--main-program", required=True)
args = parser.parse_args()
for path, begin in [(args.startup_program, b"startup of the server"), (args.main_program, b"main of the server")]:
    with open(path, "rb") as f:
        assert f.read().startswith(begin), path
time.sleep(3600)
