#!/usr/bin/env python3
"""Tests of fedavg.py: python3 test_fedavg.py (standard library only)."""

import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import fedavg  # noqa: E402

PROGRAM = os.path.join(HERE, "fedavg.py")
DIGITS = os.path.join(HERE, "data", "digits.csv")
WAIT_S = 15


def frame(body):
    return struct.pack(">I", len(body)) + body


class TempDirTest(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.dir = holder.name

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def write(self, name, text):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        return self.path(name)


class ParamsTest(TempDirTest):
    def load(self, text):
        return fedavg.load_params(self.write("params.json", text))

    def test_empty_and_null_mean_defaults(self):
        self.assertEqual(self.load("{}"), self.load("null"))
        self.assertEqual(self.load("{}")["rounds"], 8)

    def test_given_values_count(self):
        params = self.load('{"rounds": 3, "learning_rate": 1}')
        self.assertEqual((params["rounds"], params["learning_rate"]), (3, 1))

    def test_bad_values_are_refused(self):
        for text in ('{"epochs": 2}', '{"rounds": 0}', '{"rounds": "8"}', '{"rounds": true}',
                     '{"rounds": 2.5}', '{"learning_rate": NaN}', '{"learning_rate": 1e999}',
                     '{"rounds": %s}' % ("9" * 5000), "[]", "[" * 100000, "{", ""):
            with self.subTest(text[:30]), self.assertRaises(fedavg.Fault):
                self.load(text)

    def test_missing_file(self):
        with self.assertRaisesRegex(fedavg.Fault, "^fedavg: cannot read the parameter file"):
            fedavg.load_params(self.path("none.json"))


class RowsTest(TempDirTest):
    def test_the_shipped_data(self):
        rows = fedavg.load_rows(DIGITS)
        self.assertEqual(len(rows), 1797)
        train, holdout = fedavg.split_holdout(rows)
        self.assertEqual((len(train), len(holdout)), (1438, 359))

    def test_zero_pixels_are_left_out(self):
        line = ",".join(["16", "0", "8"] + ["0"] * 61 + ["4"])
        self.assertEqual(fedavg.parse_row(line, "line"), ([(0, 1.0), (2, 0.5), (64, 1.0)], 4))

    def test_bad_rows_are_refused_with_their_place(self):
        good = ",".join(["0"] * 65)
        for bad in ("", "1,2,3", good + ",0", good[:-1] + "10", "17" + good[1:], "x" + good[1:]):
            path = self.write("digits.csv", good + "\n" + bad + "\n" + good + "\n")
            with self.subTest(bad), self.assertRaisesRegex(fedavg.Fault, "line 2 is no digit row"):
                fedavg.load_rows(path)

    def test_too_few_rows(self):
        with self.assertRaisesRegex(fedavg.Fault, "has only 1 rows"):
            fedavg.load_rows(self.write("digits.csv", ",".join(["0"] * 65) + "\n"))

    def test_split_loses_and_repeats_nothing(self):
        parts = []
        for index in range(3):
            out = self.path("party%d" % index, "digits.csv")
            code = subprocess.call([sys.executable, PROGRAM, "split", "--data", DIGITS,
                                    "--parties", "3", "--index", str(index), "--out", out],
                                   stdout=subprocess.DEVNULL)
            self.assertEqual(code, 0)
            with open(out) as file:
                parts.append(file.read().splitlines())
        with open(DIGITS) as file:
            lines = file.read().splitlines()
        self.assertEqual([parts[i % 3][i // 3] for i in range(len(lines))], lines)


class LearningTest(unittest.TestCase):
    def test_gradient_step_agrees_with_finite_differences(self):
        rng = random.Random(1)
        weights = [[rng.uniform(-1, 1) for _ in range(fedavg.WIDTH)] for _ in range(10)]
        batch = [(fedavg.sparse_pixels([rng.randrange(17) for _ in range(64)]), label)
                 for label in (3, 8)]
        stepped = [list(row) for row in weights]
        fedavg.descend(stepped, batch, 1.0)
        for k, j in ((3, 5), (8, 64), (0, 30)):
            slope = weights[k][j] - stepped[k][j]
            losses = []
            for shift in (1e-5, -1e-5):
                moved = [list(row) for row in weights]
                moved[k][j] += shift
                losses.append(fedavg.evaluate(moved, batch)[1])
            self.assertAlmostEqual(slope, (losses[0] - losses[1]) / 2e-5, places=5)

    def test_average_is_weighted_by_rows(self):
        ones = [[1.0] * fedavg.WIDTH for _ in range(10)]
        fives = [[5.0] * fedavg.WIDTH for _ in range(10)]
        self.assertEqual(fedavg.average([(ones, 30), (fives, 10)])[9][64], 2.0)

    def test_weights_of_unknown_origin(self):
        def with_first(value):
            weights = fedavg.initial_weights(1)
            weights[0][0] = value
            return weights

        good = fedavg.initial_weights(1)
        self.assertTrue(fedavg.are_weights(good))
        for bad in (None, [], {}, good[:9], good + [good[0]], [row[:64] for row in good],
                    with_first("1"), with_first(True), with_first(None),
                    with_first(float("nan")), with_first(float("inf")), with_first(1e300)):
            self.assertFalse(fedavg.are_weights(bad))


class ChannelTest(unittest.TestCase):
    def setUp(self):
        left, right = socket.socketpair()
        self.addCleanup(left.close)
        self.addCleanup(right.close)
        self.raw = left
        self.channel = fedavg.Channel.__new__(fedavg.Channel)  # no TCP options on a pair
        self.channel.sock = right

    def receive(self, data, wait_s=0.2, limit=1000):
        self.raw.sendall(data)
        return self.channel.receive(time.monotonic() + wait_s, limit)

    def test_round_trip(self):
        self.channel.send({"type": "welcome"}, time.monotonic() + 1)
        self.assertEqual(self.receive(self.raw.recv(1000)), {"type": "welcome"})

    def test_size_is_checked_before_reading(self):
        with self.assertRaisesRegex(fedavg.PeerError, "announced a message of 4294967295 bytes"):
            self.receive(b"\xff" * 4)

    def test_hostile_content(self):
        for body in (b"", b"hello", b"[]", b"\xff\xfe", b'{"a": NaN}', b"[" * 900,
                     b'{"a": ' + b"9" * 800 + b"}"):
            with self.subTest(body[:20]), self.assertRaises(fedavg.PeerError):
                self.receive(frame(body))

    def test_deadline_bounds_the_whole_message(self):
        began = time.monotonic()
        with self.assertRaisesRegex(fedavg.PeerError, "in time"):
            self.receive(b"\0\0\0\x09{")
        self.assertLess(time.monotonic() - began, 2)

    def test_end_of_connection(self):
        self.assertTrue(self.channel.is_open())
        self.raw.shutdown(socket.SHUT_RDWR)
        self.assertFalse(self.channel.is_open())
        with self.assertRaisesRegex(fedavg.PeerError, "closed"):
            self.channel.receive(time.monotonic() + 1)


class JobTest(TempDirTest):
    """Whole jobs: real processes that talk over the loopback interface."""

    COUNT = 3

    def prepare(self, **params):
        params = dict({"rounds": 2, "connect_timeout_s": 10, "round_timeout_s": 10}, **params)
        self.params = self.write("params.json", json.dumps(params))
        with open(DIGITS) as file:
            lines = file.readlines()
        for index in range(self.COUNT):
            self.write("party%d/digits.csv" % index, "".join(lines[index::self.COUNT]))
        self.finish(self.start("compile", "--params", self.params, "--out", self.dir,
                               "--count", str(self.COUNT)))

    def start(self, *arguments):
        process = subprocess.Popen([sys.executable, PROGRAM] + list(arguments), cwd=self.dir,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   universal_newlines=True)
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process):
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()

    def start_aggregator(self, endpoint="127.0.0.1:0"):
        """Return the process and the port on which it listens."""
        process = self.start("aggregator", "--listen", endpoint, "--params", self.params,
                             "--input", self.dir, "--count", str(self.COUNT), "--job-id", "job-1")
        started = self.next_event(process)
        return process, int(started["listen"].rpartition(":")[2])

    def start_trainer(self, port, index, job_id="job-1", params=None):
        return self.start("trainer", "--connect", "127.0.0.1:%d" % port,
                          "--params", params or self.params,
                          "--data", self.path("party%d" % index), "--index", str(index),
                          "--count", str(self.COUNT), "--job-id", job_id)

    def start_trainers(self, port):
        return [self.start_trainer(port, index) for index in range(self.COUNT)]

    def next_event(self, process, kind=None):
        """Return the next stdout event (of a kind)."""
        for line in process.stdout:
            event = json.loads(line)
            if kind in (None, event["event"]):
                return event
        self.fail("no %s event: %s" % (kind, process.stderr.read()))

    def finish(self, process, code=0):
        """Wait for the exit code; return the remaining events and the stderr lines."""
        out, err = process.communicate(timeout=WAIT_S)
        self.assertNotIn("Traceback", err)
        self.assertEqual(process.returncode, code, err)
        return [json.loads(line) for line in out.splitlines()], err.splitlines()

    def assert_fault(self, process, pattern):
        errors = self.finish(process, 1)[1]
        self.assertEqual(len(errors), 1, errors)
        self.assertRegex(errors[0], "^fedavg: .*" + pattern)

    def connect(self, port, data=b""):
        sock = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.addCleanup(sock.close)
        sock.sendall(data)
        return sock

    def hello(self, **changes):
        message = {"type": "hello", "protocol": 1, "job_id": "job-1", "index": 0,
                   "count": self.COUNT}
        message.update(changes)
        return frame(json.dumps(message).encode())

    def run_job(self):
        """Run a job to its end; return the aggregator's events and model."""
        aggregator, port = self.start_aggregator()
        trainers = self.start_trainers(port)
        events = self.finish(aggregator)[0]
        for trainer in trainers:
            self.finish(trainer)
        return events, fedavg.load_model(self.path("model.json"))

    def test_defaults_learn(self):
        self.prepare(rounds=8)
        events, _ = self.run_job()
        rounds = [event for event in events if event["event"] == "round"]
        self.assertEqual([event["round"] for event in rounds], list(range(1, 9)))
        self.assertEqual({event["parties"] for event in rounds}, {3})
        self.assertGreater(events[-1]["accuracy"], 0.90)
        self.assertLess(rounds[-1]["loss"], rounds[0]["loss"])
        self.assertEqual(events[-1]["accuracy"], rounds[-1]["accuracy"])

    def test_accuracy_is_that_of_the_model_and_repeats(self):
        self.prepare(rounds=1)
        events, model = self.run_job()
        right = total = 0
        for index in range(self.COUNT):
            rows = fedavg.load_rows(self.path("party%d" % index, "digits.csv"))
            holdout = fedavg.split_holdout(rows)[1]
            right += fedavg.evaluate(model, holdout)[0]
            total += len(holdout)
        self.assertEqual(events[-1]["accuracy"], round(right / total, 4))
        self.assertEqual(self.run_job()[1], model)

    def test_trainers_may_start_first(self):
        self.prepare()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        trainers = self.start_trainers(port)
        for trainer in trainers:
            self.next_event(trainer, "start")
        time.sleep(0.3)
        aggregator, _ = self.start_aggregator("127.0.0.1:%d" % port)
        for process in [aggregator] + trainers:
            self.finish(process)

    def test_strangers_do_not_stop_the_job(self):
        self.prepare()
        aggregator, port = self.start_aggregator()
        self.connect(port)  # says nothing
        self.connect(port, b"\0\0")  # stops in the middle of a length
        for data in (b"GET / HTTP/1.1\r\n\r\n", frame(b"{}"), frame(b"[" * 4000),
                     self.hello(job_id="job-2"), self.hello(index=3), self.hello(index=-1),
                     self.hello(index=True), self.hello(index="0"), self.hello(count=2),
                     self.hello(protocol=2), self.hello(type=["hello"])):
            self.connect(port, data)
        self.connect(port, self.hello(index=1)).close()  # joins and leaves
        trainers = self.start_trainers(port)
        events, errors = self.finish(aggregator)
        self.assertEqual(events[-1]["event"], "done")
        self.assertGreaterEqual(sum("dropped" in line for line in errors), 11)
        for trainer in trainers:
            self.finish(trainer)

    def test_first_hello_of_an_index_wins(self):
        self.prepare()
        aggregator, port = self.start_aggregator()
        first = self.connect(port, self.hello())
        self.assertIn(b"welcome", first.recv(1000))
        second = self.connect(port, self.hello())
        self.assertIn(b"trainer 0, which is here already", second.recv(1000))
        first.close()
        third = self.connect(port, self.hello())
        self.assertIn(b"welcome", third.recv(1000))

    def test_killed_trainer_ends_the_job(self):
        self.prepare(rounds=100, round_delay_ms=200)
        aggregator, port = self.start_aggregator()
        trainers = self.start_trainers(port)
        self.next_event(aggregator, "round")
        trainers[1].kill()
        self.assert_fault(aggregator, "trainer 1 closed the connection")
        for index in (0, 2):
            self.assert_fault(trainers[index], "the aggregator closed the connection")
        self.assertFalse(os.path.exists(self.path("model.json")))

    def test_stopped_trainer_ends_the_job(self):
        self.prepare(rounds=100, round_delay_ms=100, round_timeout_s=0.7)
        aggregator, port = self.start_aggregator()
        trainers = self.start_trainers(port)
        self.next_event(aggregator, "round")
        trainers[2].send_signal(signal.SIGSTOP)
        self.assert_fault(aggregator, "trainer 2 did not answer in time")
        for trainer in trainers[:2]:
            self.finish(trainer, 1)

    def test_hostile_update_ends_the_job(self):
        self.prepare()
        aggregator, port = self.start_aggregator()
        trainers = [self.start_trainer(port, index) for index in (1, 2)]
        hostile = self.connect(port, self.hello())
        weights = fedavg.initial_weights(1)
        weights[4] = weights[4][:-1]
        update = {"type": "update", "round": 1, "weights": weights, "train_rows": 5}
        hostile.sendall(frame(json.dumps(update).encode()))
        self.assert_fault(aggregator, "trainer 0 sent 'weights' that are not 10 x 65")
        for trainer in trainers:
            self.finish(trainer, 1)

    def test_killed_aggregator_ends_the_trainers(self):
        self.prepare(rounds=100, round_delay_ms=200)
        aggregator, port = self.start_aggregator()
        trainers = self.start_trainers(port)
        self.next_event(aggregator, "round")
        aggregator.kill()
        for trainer in trainers:
            self.assert_fault(trainer, "the aggregator closed the connection")

    def test_missing_trainer_is_named(self):
        self.prepare(connect_timeout_s=1)
        aggregator, port = self.start_aggregator()
        trainer = self.start_trainer(port, 1)
        self.assert_fault(aggregator, "no trainer 0, 2 within 1 s")
        self.finish(trainer, 1)

    def test_trainer_gives_up(self):
        self.prepare(connect_timeout_s=0.5)
        with socket.socket() as probe:  # bound but not listening: connections are refused
            probe.bind(("127.0.0.1", 0))
            self.assert_fault(self.start_trainer(probe.getsockname()[1], 0),
                              "could not join the aggregator at 127.0.0.1:")

    def test_trainer_of_another_job_is_refused(self):
        self.prepare()
        aggregator, port = self.start_aggregator()
        impatient = self.write("impatient.json", '{"connect_timeout_s": 0.5}')
        self.assert_fault(self.start_trainer(port, 0, "job-2", impatient),
                          "belongs to another job")
        self.assertIsNone(aggregator.poll())

    def test_sigterm_ends_every_task_quickly(self):
        self.prepare(rounds=100, round_delay_ms=1000)
        aggregator, port = self.start_aggregator()
        trainers = self.start_trainers(port)
        self.next_event(aggregator, "round")
        began = time.monotonic()
        for process in [aggregator] + trainers:
            process.terminate()
        self.finish(aggregator, 143)
        for trainer in trainers:
            trainer.communicate(timeout=WAIT_S)
            # It may see the aggregator go first, and then be ended by the signal while the interpreter shuts down.
            self.assertIn(trainer.returncode, (1, 143, -signal.SIGTERM))
        self.assertLess(time.monotonic() - began, 30)  # the job itself would take more than 100

    def test_wrong_parameters_are_refused_by_compile(self):
        params = self.write("params.json", '{"epochs": 5}')
        self.assert_fault(self.start("compile", "--params", params, "--out", self.dir,
                                     "--count", "3"), 'unknown parameter "epochs": use only rounds')
        self.assertFalse(os.path.exists(self.path("init.json")))

    def test_endpoint_in_use(self):
        self.prepare()
        _, port = self.start_aggregator()
        second = self.start("aggregator", "--listen", "127.0.0.1:%d" % port,
                            "--params", self.params, "--input", self.dir, "--count", "3",
                            "--job-id", "job-1")
        self.assert_fault(second, "cannot listen on 127.0.0.1:%d" % port)


if __name__ == "__main__":
    unittest.main()
