"""What Python's json makes of request bodies at /query: one body a line, hexadecimal, on stdin; status and body a line, as JSON, on stdout."""

import json
import re
import sys


def reason(error):
    """In the words up to Python 3.12, which FedVision 0.1 runs on; 3.13 has new ones for a comma before the end."""
    if not error.msg.startswith("Illegal trailing comma"):
        return str(error)
    at = re.compile(r"[ \t\n\r]*").match(error.doc, error.pos + 1).end()
    what = "Expecting value" if "array" in error.msg else "Expecting property name enclosed in double quotes"
    return str(json.JSONDecodeError(what, error.doc, at))


def answer(body):
    try:
        value = json.loads(body.decode("utf-8"))
    except json.JSONDecodeError as error:
        return "400 " + reason(error), "{}"
    if not isinstance(value, dict):
        return "400 the request body must be a JSON object", None
    job_id = value.get("job_id")
    if job_id is None:
        return "400 required `job_id`", "{}"
    if isinstance(job_id, (list, dict)):
        return "400 job_id: must be a string", None
    return "404 Not Found", json.dumps({"job_id": job_id, "status": "_JobStatus.NOTFOUND"})


for line in sys.stdin:
    print(json.dumps(answer(bytes.fromhex(line))))
