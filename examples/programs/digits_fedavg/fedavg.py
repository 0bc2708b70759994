#!/usr/bin/env python3
"""Federated averaging of a digit classifier, for Python 3.8 or later.

One aggregator and N trainers learn a softmax classifier of 8x8 digit images.
Every trainer keeps its rows to itself; only weights and counts travel.
README.md describes the parameters and the messages.
"""

import argparse
import json
import math
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

PROTOCOL = 1
MODEL_FORMAT = "digits_fedavg/1"

CLASSES = 10
PIXELS = 64
WIDTH = PIXELS + 1  # one weight per pixel, and the bias
PIXEL_MAX = 16

MAX_WEIGHT = 1e6
MAX_LOSS = 100.0
MAX_ROWS = 10 ** 8
MIN_ROWS = 5  # every fifth row is held out, so fewer rows leave no holdout
HOLDOUT_EVERY = 5

MAX_MESSAGE_BYTES = 1 << 20  # a model is about 15 kB
MAX_HELLO_BYTES = 4096  # what a peer may send before it is known
MAX_INTEGER_DIGITS = 19
HELLO_TIMEOUT_S = 5.0
MAX_PENDING_HELLOS = 32
CONNECT_ATTEMPT_S = 5.0
GRACE_S = 10.0  # a trainer waits a little longer than the aggregator does


class Fault(Exception):
    """An expected fault that ends the program: what is wrong, and the mend."""

    def __init__(self, what, mend):
        super().__init__("fedavg: %s: %s" % (what, mend))


class PeerError(Exception):
    """The other end of a connection is gone, too slow, or breaks the protocol."""


def emit(event, **fields):
    """Print one JSON line on stdout."""
    line = json.dumps(dict({"event": event}, **fields))
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def complain(line):
    """Print one line on stderr."""
    sys.stderr.write("fedavg: %s\n" % line)
    sys.stderr.flush()


def reason_of(error):
    """Return the short text of an OSError."""
    if error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


# ---------------------------------------------------------------- parameters

# name: (default, kind, least, most)
PARAMETERS = {
    "rounds": (8, int, 1, 1000),
    "local_epochs": (2, int, 1, 100),
    "batch_size": (32, int, 1, 1024),
    "learning_rate": (0.5, float, 1e-6, 10.0),
    "seed": (7, int, 0, 2 ** 31 - 1),
    "round_delay_ms": (0, int, 0, 60000),
    "connect_timeout_s": (60, float, 0.1, 3600),
    "round_timeout_s": (60, float, 0.1, 3600),
}


def load_params(path):
    """Read the parameter file; an empty object or null means all defaults."""
    given = read_json(path, "parameter file")
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise Fault("parameter file %s holds no JSON object" % path,
                    'write for example {"rounds": 8}')
    for name in given:
        if name not in PARAMETERS:
            raise Fault("unknown parameter %s" % json.dumps(name),
                        "use only " + ", ".join(PARAMETERS))
    return {name: check_param(name, given.get(name, rule[0]))
            for name, rule in PARAMETERS.items()}


def check_param(name, value):
    """Return the value if it has the type and range of the parameter."""
    _, kind, least, most = PARAMETERS[name]
    right_type = is_integer(value) if kind is int else is_finite_number(value)
    if not right_type or not least <= value <= most:
        raise Fault("parameter %s is %s" % (name, shorten(json.dumps(value))),
                    "give %s from %s to %s" % (
                        "an integer" if kind is int else "a number", least, most))
    return value


def is_integer(value):
    return type(value) is int  # a bool is an int, but no number here


def is_finite_number(value):
    return type(value) is int or (type(value) is float and math.isfinite(value))


def shorten(text, most=60):
    return text if len(text) <= most else text[:most - 3] + "..."


# --------------------------------------------------------------------- files

def parse_json(text):
    """json.loads that also refuses NaN, huge integers and deep nesting."""
    try:
        return json.loads(text, parse_int=parse_integer, parse_constant=refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_integer(digits):
    if len(digits) > MAX_INTEGER_DIGITS:
        raise ValueError("integer with too many digits")
    return int(digits)


def refuse_constant(name):
    raise ValueError("%s is not JSON" % name)


def read_text(path, name):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise Fault("cannot read the %s %s (%s)" % (name, path, reason_of(error)),
                    "give the path of a readable file") from None
    except UnicodeDecodeError:
        raise Fault("the %s %s is not text" % (name, path), "save it as UTF-8") from None


def read_json(path, name):
    try:
        return parse_json(read_text(path, name))
    except ValueError as error:
        raise Fault("the %s %s is not valid JSON (%s)" % (name, path, error),
                    "correct the file") from None


def write_atomically(path, text):
    """Write the file so that a crash leaves the old file or the new one."""
    temporary = "%s.%d.tmp" % (path, os.getpid())
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(os.path.dirname(os.path.abspath(path)))
    except OSError as error:
        raise Fault("cannot write %s (%s)" % (path, reason_of(error)),
                    "see that the directory exists, is writable and has room") from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def sync_directory(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_model(path, weights, **facts):
    model = dict({"format": MODEL_FORMAT}, **facts)
    model["weights"] = weights
    write_atomically(path, json.dumps(model) + "\n")


def load_model(path):
    model = read_json(path, "model file")
    if (not isinstance(model, dict) or model.get("format") != MODEL_FORMAT
            or not are_weights(model.get("weights"))):
        raise Fault("%s holds no %s model" % (path, MODEL_FORMAT),
                    "make it with 'fedavg.py compile'")
    return model["weights"]


# ---------------------------------------------------------------------- rows

def load_rows(path):
    """Read a CSV file of 64 pixels and a label per line as (pixels, label) rows."""
    rows = [parse_row(line, "%s line %d" % (path, number))
            for number, line in enumerate(read_text(path, "data file").splitlines(), 1)]
    if len(rows) < MIN_ROWS:
        raise Fault("%s has only %d rows" % (path, len(rows)),
                    "give at least %d" % MIN_ROWS)
    return rows


def parse_row(line, where):
    try:
        values = [int(cell) for cell in line.split(",")]
    except ValueError:
        values = []
    if (len(values) != PIXELS + 1
            or not all(0 <= pixel <= PIXEL_MAX for pixel in values[:PIXELS])
            or not 0 <= values[PIXELS] < CLASSES):
        raise Fault("%s is no digit row" % where,
                    "write 64 integers 0..16 and a label 0..9, with commas between")
    return sparse_pixels(values[:PIXELS]), values[PIXELS]


def sparse_pixels(pixels):
    """Return (place, value 0..1) of each pixel that is not zero, and the bias input."""
    inputs = [(place, pixel / PIXEL_MAX) for place, pixel in enumerate(pixels) if pixel]
    inputs.append((PIXELS, 1.0))
    return inputs


def split_holdout(rows):
    """Hold every fifth row out; the other four fifths are for training."""
    train, holdout = [], []
    for number, row in enumerate(rows, 1):
        (train if number % HOLDOUT_EVERY else holdout).append(row)
    return train, holdout


# ------------------------------------------------------------------ learning

def initial_weights(seed):
    rng = random.Random("init/%d" % seed)
    return [[rng.uniform(-0.01, 0.01) for _ in range(WIDTH)] for _ in range(CLASSES)]


def are_weights(value):
    """Tell whether a value of unknown origin is a 10 x 65 list of sane numbers."""
    return (isinstance(value, list) and len(value) == CLASSES
            and all(isinstance(row, list) and len(row) == WIDTH
                    and all(is_finite_number(weight) and abs(weight) <= MAX_WEIGHT
                            for weight in row)
                    for row in value))


def probabilities(weights, inputs):
    """Softmax over the classes."""
    scores = [sum([row[place] * value for place, value in inputs]) for row in weights]
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def evaluate(weights, rows):
    """Return how many rows the model gets right, and its mean cross-entropy."""
    correct, loss = 0, 0.0
    for inputs, label in rows:
        chances = probabilities(weights, inputs)
        correct += chances.index(max(chances)) == label
        loss -= math.log(max(chances[label], 1e-15))
    return correct, loss / len(rows)


def train_locally(weights, rows, params, rng):
    """Return the weights after local_epochs of mini-batch SGD on the rows."""
    weights = [list(row) for row in weights]
    order = list(rows)
    size = params["batch_size"]
    for _ in range(params["local_epochs"]):
        rng.shuffle(order)
        for start in range(0, len(order), size):
            descend(weights, order[start:start + size], params["learning_rate"])
    return weights


def descend(weights, batch, learning_rate):
    """Take one step against the mean gradient of the batch, in place."""
    gradient = [[0.0] * WIDTH for _ in range(CLASSES)]
    for inputs, label in batch:
        errors = probabilities(weights, inputs)
        errors[label] -= 1.0
        for slope, error in zip(gradient, errors):
            for place, value in inputs:
                slope[place] += error * value
    step = learning_rate / len(batch)
    for row, slope in zip(weights, gradient):
        row[:] = [weight - step * part for weight, part in zip(row, slope)]


def average(updates):
    """Average (weights, rows) pairs, each weighted by its number of rows."""
    total = sum(rows for _, rows in updates)
    shares = [(weights, rows / total) for weights, rows in updates]
    return [[sum([weights[k][j] * share for weights, share in shares])
             for j in range(WIDTH)]
            for k in range(CLASSES)]


# ------------------------------------------------------------------- network

def parse_endpoint(text):
    """Return (host, port) of 'host:port' or '[IPv6 address]:port'."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not is_host(host) or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise argparse.ArgumentTypeError("%r is not host:port" % text)
    return host, int(port)


def is_host(text):
    try:
        return text.encode("idna") != b""
    except UnicodeError:
        return False


def show_endpoint(address):
    host, port = address[:2]
    return ("[%s]:%d" if ":" in host else "%s:%d") % (host, port)


class Channel:
    """A connection that carries JSON objects, each after its length in 4 bytes.

    A deadline is a time.monotonic() value and bounds a whole message, so a peer
    cannot stretch it by sending one byte at a time.
    """

    def __init__(self, sock):
        self.sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message, deadline):
        body = json.dumps(message).encode("ascii")
        try:
            self._set_timeout(deadline)
            self.sock.sendall(struct.pack(">I", len(body)) + body)
        except socket.timeout:
            raise PeerError("did not take a message in time") from None
        except OSError:
            raise PeerError("closed the connection") from None

    def receive(self, deadline, limit=MAX_MESSAGE_BYTES):
        """Return the next message, a dict of unchecked content."""
        size, = struct.unpack(">I", self._read(4, deadline))
        if size > limit:
            raise PeerError("announced a message of %d bytes, the limit is %d" % (size, limit))
        try:
            message = parse_json(self._read(size, deadline).decode("utf-8"))
        except ValueError:
            raise PeerError("sent something that is not JSON") from None
        if not isinstance(message, dict):
            raise PeerError("sent JSON that is not an object")
        return message

    def is_open(self):
        """Tell whether the peer still holds the connection, without waiting."""
        try:
            self.sock.setblocking(False)
            return self.sock.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits on it
        except OSError:
            pass
        self.sock.close()

    def _read(self, size, deadline):
        data = bytearray()
        try:
            while len(data) < size:
                self._set_timeout(deadline)
                part = self.sock.recv(min(size - len(data), 65536))
                if not part:
                    raise PeerError("closed the connection")
                data += part
        except socket.timeout:
            raise PeerError("did not answer in time") from None
        except OSError:
            raise PeerError("closed the connection") from None
        return data

    def _set_timeout(self, deadline):
        self.sock.settimeout(max(deadline - time.monotonic(), 0.001))


def expect(message, kind, round_number=None):
    """Check that a message is the one that the protocol has next."""
    if message.get("type") != kind or message.get("round") != round_number:
        step = kind if round_number is None else "%s of round %d" % (kind, round_number)
        raise PeerError("sent something else than the message '%s'" % step)


def take_integer(message, name, least, most):
    value = message.get(name)
    if not is_integer(value) or not least <= value <= most:
        raise PeerError("sent a '%s' that is no integer from %d to %d" % (name, least, most))
    return value


def take_loss(message):
    value = message.get("loss")
    if not is_finite_number(value) or not 0 <= value <= MAX_LOSS:
        raise PeerError("sent a 'loss' that is no number from 0 to %g" % MAX_LOSS)
    return value


def take_weights(message):
    weights = message.get("weights")
    if not are_weights(weights):
        raise PeerError("sent 'weights' that are not %d x %d finite numbers" % (CLASSES, WIDTH))
    return weights


# ---------------------------------------------------------------- aggregator

class Lobby:
    """Lets connections in until there is one trainer for every index.

    Each new connection gets a thread of its own and a few seconds to say hello,
    so neither garbage nor silence keeps the real trainers out.
    """

    def __init__(self, job_id, count):
        self.job_id = job_id
        self.count = count
        self.members = {}
        self.closed = False
        self.lock = threading.Lock()
        self.pending = threading.BoundedSemaphore(MAX_PENDING_HELLOS)

    def gather(self, listener, timeout_s):
        """Return {index: Channel} of all trainers."""
        deadline = time.monotonic() + timeout_s
        listener.settimeout(0.1)
        while not self._is_complete():
            if time.monotonic() > deadline:
                raise Fault("no trainer %s within %g s" % (self._missing(), timeout_s),
                            "see why it did not start or cannot reach this endpoint")
            self._accept(listener)
        return dict(self.members)

    def _is_complete(self):
        with self.lock:
            for index in [i for i, channel in self.members.items() if not channel.is_open()]:
                self._forget(index)
            self.closed = len(self.members) == self.count
            return self.closed

    def _missing(self):
        with self.lock:
            return ", ".join(str(i) for i in range(self.count) if i not in self.members)

    def _accept(self, listener):
        try:
            sock, address = listener.accept()
        except socket.timeout:
            return
        except OSError as error:
            complain("could not accept a connection (%s): trying again" % reason_of(error))
            time.sleep(0.1)
            return
        if self.pending.acquire(blocking=False):
            threading.Thread(target=self._greet, args=(sock, show_endpoint(address)),
                             daemon=True).start()
        else:
            complain("dropped %s: too many connections without a hello" % show_endpoint(address))
            sock.close()

    def _greet(self, sock, peer):
        channel = None
        try:
            channel = Channel(sock)
            hello = channel.receive(time.monotonic() + HELLO_TIMEOUT_S, MAX_HELLO_BYTES)
            self._admit(channel, hello, peer)
        except (PeerError, OSError) as error:
            complain("dropped %s: it %s" % (peer, error))
            (channel or sock).close()
        finally:
            self.pending.release()

    def _admit(self, channel, hello, peer):
        deadline = time.monotonic() + HELLO_TIMEOUT_S
        with self.lock:
            try:
                index = self._check_hello(hello)
            except PeerError as error:
                channel.send({"type": "refused", "reason": str(error)}, deadline)
                raise
            channel.send({"type": "welcome"}, deadline)
            self.members[index] = channel
            emit("joined", trainer=index, peer=peer)

    def _check_hello(self, hello):
        expect(hello, "hello")
        take_integer(hello, "protocol", PROTOCOL, PROTOCOL)
        if hello.get("job_id") != self.job_id:
            raise PeerError("belongs to another job")
        take_integer(hello, "count", self.count, self.count)
        index = take_integer(hello, "index", 0, self.count - 1)
        if not self.closed and index in self.members and not self.members[index].is_open():
            self._forget(index)
        if self.closed or index in self.members:
            raise PeerError("says it is trainer %d, which is here already" % index)
        return index

    def _forget(self, index):
        complain("trainer %d left before the start: waiting for it to come back" % index)
        self.members.pop(index).close()


class Trainers:
    """The connected trainers; asks them all at the same time."""

    def __init__(self, channels, timeout_s):
        self.channels = channels
        self.timeout_s = timeout_s
        self.pool = ThreadPoolExecutor(max_workers=len(channels))

    def ask(self, message, check, step):
        """Send a message to all; return the checked answers in the order of the index."""
        deadline = time.monotonic() + self.timeout_s
        jobs = {self.pool.submit(self._ask_one, channel, message, check, deadline): index
                for index, channel in self.channels.items()}
        answers = {}
        for job in as_completed(jobs):
            try:
                answers[jobs[job]] = job.result()
            except PeerError as error:
                raise Fault("trainer %d %s (%s)" % (jobs[job], error, step),
                            "see the log of that trainer, then run the job again") from None
        return [answers[index] for index in sorted(answers)]

    @staticmethod
    def _ask_one(channel, message, check, deadline):
        channel.send(message, deadline)
        return check(channel.receive(deadline))

    def close(self):
        for channel in self.channels.values():
            channel.close()
        self.pool.shutdown()


def train_round(trainers, number, weights):
    """Have all trainers train; return the averaged weights and the rows behind them."""
    def check(answer):
        expect(answer, "update", number)
        return take_weights(answer), take_integer(answer, "train_rows", 1, MAX_ROWS)

    updates = trainers.ask({"type": "train", "round": number, "weights": weights},
                           check, "training, round %d" % number)
    return average(updates), sum(rows for _, rows in updates)


def score_round(trainers, number, weights):
    """Have all trainers evaluate; return accuracy and loss over all holdouts."""
    def check(answer):
        expect(answer, "score", number)
        total = take_integer(answer, "holdout_rows", 1, MAX_ROWS)
        return take_integer(answer, "correct", 0, total), total, take_loss(answer)

    scores = trainers.ask({"type": "evaluate", "round": number, "weights": weights},
                          check, "evaluation, round %d" % number)
    rows = sum(total for _, total, _ in scores)
    return {"accuracy": round(sum(correct for correct, _, _ in scores) / rows, 4),
            "loss": round(sum(loss * total for _, total, loss in scores) / rows, 4),
            "holdout_rows": rows}


def run_rounds(trainers, weights, params):
    """Do all rounds; return the final weights and accuracy."""
    rounds, score = params["rounds"], {}
    for number in range(1, rounds + 1):
        if number > 1:
            time.sleep(params["round_delay_ms"] / 1000.0)
        began = time.monotonic()
        weights, train_rows = train_round(trainers, number, weights)
        score = score_round(trainers, number, weights)
        emit("round", round=number, rounds=rounds, parties=len(trainers.channels),
             train_rows=train_rows, seconds=round(time.monotonic() - began, 3), **score)
    return weights, score["accuracy"]


def listen(address):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        return socket.create_server(address, family=family, backlog=64)
    except OSError as error:
        raise Fault("cannot listen on %s (%s)" % (show_endpoint(address), reason_of(error)),
                    "use a free port and an address of this machine") from None


def aggregator(args):
    params = load_params(args.params)
    weights = load_model(os.path.join(args.input, "init.json"))
    with listen(args.listen) as listener:
        emit("start", job_id=args.job_id, listen=show_endpoint(listener.getsockname()),
             parties=args.count, rounds=params["rounds"])
        channels = Lobby(args.job_id, args.count).gather(listener, params["connect_timeout_s"])
    trainers = Trainers(channels, params["round_timeout_s"])
    try:
        weights, accuracy = run_rounds(trainers, weights, params)
        save_model("model.json", weights, rounds=params["rounds"], accuracy=accuracy)
        trainers.ask({"type": "done", "accuracy": accuracy},
                     lambda answer: expect(answer, "bye"), "end of the job")
    finally:
        trainers.close()
    emit("done", accuracy=accuracy, model="model.json")


# ------------------------------------------------------------------- trainer

def join(args, timeout_s):
    """Connect and say hello, again and again until the aggregator welcomes us."""
    deadline = time.monotonic() + timeout_s
    pause = 0.1
    while True:
        try:
            return try_to_join(args, min(deadline, time.monotonic() + CONNECT_ATTEMPT_S))
        except PeerError as error:
            if time.monotonic() + pause > deadline:
                raise Fault("could not join the aggregator at %s within %g s, it %s"
                            % (show_endpoint(args.connect), timeout_s, error),
                            "see that it runs, can be reached and has the same job id") from None
        time.sleep(pause)
        pause = min(pause * 2, 2.0)


def try_to_join(args, deadline):
    channel = connect(args.connect, deadline)
    try:
        channel.send({"type": "hello", "protocol": PROTOCOL, "job_id": args.job_id,
                      "index": args.index, "count": args.count}, deadline)
        answer = channel.receive(deadline, MAX_HELLO_BYTES)
        if answer.get("type") == "refused":
            raise PeerError("refused this trainer: %s"
                            % shorten(ascii(answer.get("reason")), 120))
        expect(answer, "welcome")
        return channel
    except BaseException:
        channel.close()
        raise


def connect(address, deadline):
    try:
        sock = socket.create_connection(
            address, timeout=max(deadline - time.monotonic(), 0.001))
    except OSError as error:
        raise PeerError("cannot be reached (%s)" % reason_of(error)) from None
    if sock.getsockname() == sock.getpeername():
        sock.close()  # TCP met itself: the port is local and nobody listens yet
        raise PeerError("does not listen yet")
    return Channel(sock)


class Trainer:
    """One party's side of the job: its rows, and the talk with the aggregator."""

    def __init__(self, channel, params, index, train_rows, holdout_rows):
        self.channel = channel
        self.params = params
        self.index = index
        self.train_rows = train_rows
        self.holdout_rows = holdout_rows
        # The first message comes when all trainers have joined, a later one when
        # the slowest trainer has answered and the aggregator has paused.
        self.first_wait_s = params["connect_timeout_s"] + GRACE_S
        self.wait_s = params["round_timeout_s"] + params["round_delay_ms"] / 1000.0 + GRACE_S

    def run(self):
        """Follow the job to its end; return the final accuracy over all parties."""
        for number in range(1, self.params["rounds"] + 1):
            began = time.monotonic()
            try:
                self._train(number, self.first_wait_s if number == 1 else self.wait_s)
                self._evaluate(number, began)
            except PeerError as error:
                raise Fault("the aggregator %s (round %d)" % (error, number),
                            "see the log of the aggregator") from None
        try:
            return self._finish()
        except PeerError as error:
            raise Fault("the aggregator %s (end of the job)" % error,
                        "see the log of the aggregator") from None

    def _train(self, number, wait_s):
        message = self._receive("train", number, wait_s)
        rng = random.Random("train/%d/%d/%d" % (self.params["seed"], self.index, number))
        weights = train_locally(take_weights(message), self.train_rows, self.params, rng)
        if not are_weights(weights):
            raise Fault("the training diverged in round %d" % number, "lower learning_rate")
        self._send({"type": "update", "round": number, "weights": weights,
                    "train_rows": len(self.train_rows)})

    def _evaluate(self, number, began):
        message = self._receive("evaluate", number, self.wait_s)
        correct, loss = evaluate(take_weights(message), self.holdout_rows)
        total = len(self.holdout_rows)
        self._send({"type": "score", "round": number, "correct": correct,
                    "holdout_rows": total, "loss": loss})
        emit("round", round=number, rounds=self.params["rounds"], trainer=self.index,
             accuracy=round(correct / total, 4), loss=round(loss, 4),
             seconds=round(time.monotonic() - began, 3))

    def _finish(self):
        message = self._receive("done", None, self.wait_s)
        accuracy = message.get("accuracy")
        if not is_finite_number(accuracy) or not 0 <= accuracy <= 1:
            raise PeerError("sent an 'accuracy' that is no number from 0 to 1")
        self._send({"type": "bye"})
        return accuracy

    def _receive(self, kind, number, wait_s):
        message = self.channel.receive(time.monotonic() + wait_s)
        expect(message, kind, number)
        return message

    def _send(self, message):
        self.channel.send(message, time.monotonic() + self.wait_s)


def trainer(args):
    if args.index >= args.count:
        raise Fault("trainer index %d with %d trainers" % (args.index, args.count),
                    "give an index from 0 to %d" % (args.count - 1))
    params = load_params(args.params)
    train_rows, holdout_rows = split_holdout(load_rows(os.path.join(args.data, "digits.csv")))
    emit("start", job_id=args.job_id, trainer=args.index, rounds=params["rounds"],
         train_rows=len(train_rows), holdout_rows=len(holdout_rows))
    channel = join(args, params["connect_timeout_s"])
    try:
        accuracy = Trainer(channel, params, args.index, train_rows, holdout_rows).run()
    finally:
        channel.close()
    emit("done", accuracy=accuracy)


# --------------------------------------------------------- compile and split

def compile_job(args):
    """Check the parameters and write the initial model."""
    params = load_params(args.params)
    path = os.path.join(args.out, "init.json")
    save_model(path, initial_weights(params["seed"]), rounds=0)
    emit("compiled", trainers=args.count, model=path, params=params)


def split(args):
    """Write one party's part of a data file: row i goes to party i mod N."""
    if args.index >= args.parties:
        raise Fault("party index %d with %d parties" % (args.index, args.parties),
                    "give an index from 0 to %d" % (args.parties - 1))
    lines = read_text(args.data, "data file").splitlines()
    part = lines[args.index::args.parties]
    directory = os.path.dirname(os.path.abspath(args.out))
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise Fault("cannot make the directory %s (%s)" % (directory, reason_of(error)),
                    "choose another place") from None
    write_atomically(args.out, "".join(line + "\n" for line in part))
    emit("split", party=args.index, rows=len(part), out=args.out)


# ------------------------------------------------------------------- command

def positive(text):
    value = int(text)
    if not 1 <= value <= 1000:
        raise ValueError
    return value


def natural(text):
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="fedavg", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, run, summary):
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(run=run)
        return added

    sub = command("compile", compile_job, "check the parameters, write the initial model")
    sub.add_argument("--params", required=True, metavar="FILE")
    sub.add_argument("--out", required=True, metavar="DIR")
    sub.add_argument("--count", required=True, type=positive, help="number of trainers")

    sub = command("aggregator", aggregator, "lead the rounds and average the models")
    sub.add_argument("--listen", required=True, type=parse_endpoint, metavar="HOST:PORT")
    sub.add_argument("--params", required=True, metavar="FILE")
    sub.add_argument("--input", required=True, metavar="DIR", help="where init.json is")
    sub.add_argument("--count", required=True, type=positive, help="number of trainers")
    sub.add_argument("--job-id", required=True)

    sub = command("trainer", trainer, "train on the rows of one party")
    sub.add_argument("--connect", required=True, type=parse_endpoint, metavar="HOST:PORT")
    sub.add_argument("--params", required=True, metavar="FILE")
    sub.add_argument("--data", required=True, metavar="DIR", help="where digits.csv is")
    sub.add_argument("--index", required=True, type=natural, help="0, 1, ... count-1")
    sub.add_argument("--count", required=True, type=positive, help="number of trainers")
    sub.add_argument("--job-id", required=True)

    sub = command("split", split, "write one party's part of a data file")
    sub.add_argument("--data", required=True, metavar="FILE")
    sub.add_argument("--parties", required=True, type=positive)
    sub.add_argument("--index", required=True, type=natural, help="0, 1, ... parties-1")
    sub.add_argument("--out", required=True, metavar="FILE")
    return parser.parse_args(argv)


def stop_on_signal(number, _frame):
    os.write(2, b"fedavg: stopped by a signal: nothing to mend\n")
    raise SystemExit(128 + number)


def main(argv=None):
    args = parse_arguments(argv)
    signal.signal(signal.SIGTERM, stop_on_signal)
    signal.signal(signal.SIGINT, stop_on_signal)
    try:
        args.run(args)
    except Fault as fault:
        sys.stderr.write("%s\n" % fault)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the last flush is silent
        complain("cannot write to stdout: keep its reader running")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
