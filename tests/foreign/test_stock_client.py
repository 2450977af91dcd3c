"""Highwater as a foreign client meets it: the stock nats-py package and the documented subjects, no Highwater code.

Starts a nats-server and the five services in a temporary directory, each a process of its own, and ends them by id.
HIGHWATER_BIN and HIGHWATER_NATS_SERVER name the two binaries; `cargo xtask test` sets them.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

import nats
from nats.js.api import KeyValueConfig

SERVICES = ["cluster-manager", "coordinator", "projector", "indexer", "catalog"]
READY_WITHIN = 30
PATIENCE = 20

PEOPLE = {
    "u1": {"name": "Ada", "age": 36, "address": {"city": "London"}},
    "u2": {"name": "Linus", "age": 21, "address": {"city": "Helsinki"}},
    "u3": {"name": "Grace", "age": 85, "address": {"city": "Arlington"}},
    "u4": {"name": "Edsger", "age": 72, "address": {"city": "Nuenen"}},
    "u5": {"name": "Barbara", "age": 36, "address": {"city": "Boston"}},
    "u6": {"name": "Anonymous", "address": {"city": "Oslo"}},
    # A key of several tokens, as stock clients allow.
    "guests.u7": {"name": "Tim", "age": 30, "address": {"city": "Geneva"}},
}


class Refused(Exception):
    """A reply with ok = false."""

    def __init__(self, error, headers):
        super().__init__(f"{error['code']}: {error['message']}")
        self.error, self.headers = error, headers or {}


class Fleet:
    """The processes of one run."""

    def __init__(self, directory):
        self.directory, self.children = directory, []

    def spawn(self, name, *command):
        out = open(os.path.join(self.directory, f"{name}.out"), "wb")
        log = open(os.path.join(self.directory, f"{name}.log"), "wb")
        # A developer's own NATS settings are not meant for this server.
        env = {k: v for k, v in os.environ.items() if not k.startswith("NATS_")}
        env["XDG_CONFIG_HOME"] = os.devnull
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=env, start_new_session=True)
        out.close(), log.close()
        self.children.append((name, child))
        return child

    def text(self, name, kind):
        with open(os.path.join(self.directory, f"{name}.{kind}"), errors="replace") as file:
            return file.read()

    def wait(self, name, child, serves):
        until = time.monotonic() + READY_WITHIN
        while not serves():
            assert child.poll() is None, f"{name} ended with {child.returncode}: {self.text(name, 'log')[-2000:]}"
            assert time.monotonic() < until, f"{name} does not serve: {self.text(name, 'log')[-2000:]}"
            time.sleep(0.02)

    def start(self, binary, server):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        store = os.path.join(self.directory, "nats")
        child = self.spawn("nats-server", server, "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", store)

        def answers():
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        self.wait("nats-server", child, answers)
        url = f"nats://127.0.0.1:{port}"
        started = []
        for service in SERVICES:
            data = os.path.join(self.directory, service)
            command = [binary, service, "--node-id", f"{service}-1", "--data-dir", data, "--nats-url", url]
            started.append((service, self.spawn(service, *command)))
        for service, child in started:
            self.wait(service, child, lambda s=service: "highwater ready" in self.text(s, "out"))
        return url

    def check(self):
        for name, child in self.children:
            assert child.poll() is None, f"{name} ended with {child.returncode}: {self.text(name, 'log')[-2000:]}"

    def stop(self):
        for _, child in reversed(self.children):
            if child.poll() is None:
                os.kill(child.pid, signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                os.kill(child.pid, signal.SIGKILL)
                child.wait()


class Story:
    """One connection, one bucket, and the tests in the order in which a newcomer would do things."""

    def __init__(self, nc):
        self.nc, self.js, self.kv = nc, nc.jetstream(), None

    async def ask(self, subject, request, raw=None):
        payload = raw if raw is not None else json.dumps(request).encode()
        message = await self.nc.request(subject, payload, timeout=PATIENCE)
        reply = json.loads(message.data)
        if reply["ok"] is not True:
            raise Refused(reply["error"], message.headers)
        assert not (message.headers or {}).get("Nats-Service-Error"), message.headers
        return reply

    async def insist(self, subject, request):
        """Asks again while the error says that it may help."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return await self.ask(subject, request)
            except Refused as refused:
                if not refused.error["retry"] or time.monotonic() > until:
                    raise
            await asyncio.sleep(0.05)

    async def refused(self, subject, request, raw=None):
        try:
            reply = await self.ask(subject, request, raw)
        except Refused as refused:
            return refused
        raise AssertionError(f"{subject} {request or raw} was not refused: {reply}")

    async def ids(self, index="by_age", **more):
        reply = await self.insist("hw.query.scan", {"bucket": "people", "index": index, **more})
        return [row["id"] for row in reply["rows"]]

    async def test_puts_documents_with_the_stock_key_value_api(self):
        self.kv = await self.js.create_key_value(KeyValueConfig(bucket="people"))
        for key, document in PEOPLE.items():
            await self.kv.put(key, json.dumps(document).encode())
        return f"{len(PEOPLE)} documents in the key-value bucket people"

    async def test_finds_the_services_by_discovery(self):
        # Two kinds of service answer for highwater-admin: a catalog passes on what reaches it.
        wanted = {
            "highwater-admin": {"hw.admin.index.create", "hw.admin.index.drop", "hw.admin.bucket.add"},
            "highwater-query": {"hw.query.scan", "hw.query.count", "hw.query.list", "hw.query.describe"},
        }
        found = {}
        inbox = await self.nc.subscribe(self.nc.new_inbox())
        await self.nc.publish("$SRV.INFO", b"", reply=inbox.subject)
        until = time.monotonic() + 5
        while not all(subjects <= found.get(name, set()) for name, subjects in wanted.items()):
            assert time.monotonic() < until, found
            try:
                info = json.loads((await inbox.next_msg(timeout=1)).data)
            except nats.errors.TimeoutError:
                continue
            assert info["type"] == "io.nats.micro.v1.info_response", info
            found.setdefault(info["name"], set()).update(e["subject"] for e in info["endpoints"])
        await inbox.unsubscribe()
        pong = json.loads((await self.nc.request("$SRV.PING.highwater-query", b"", timeout=5)).data)
        assert pong["name"] == "highwater-query", pong
        return ", ".join(f"{name} with {len(subjects)} endpoints" for name, subjects in sorted(found.items()))

    async def test_creates_an_index_and_sees_it_become_active(self):
        definition = {"bucket": "people", "name": "by_age", "keys": ["age DESC", "address.city"], "include": ["name"]}
        reply = await self.ask("hw.admin.index.create", definition)
        assert reply["index"]["name"] == "by_age" and reply["index"]["state"] in ("building", "active"), reply
        until = time.monotonic() + PATIENCE
        while True:
            (index,) = (await self.ask("hw.query.list", {"bucket": "people"}))["indexes"]
            if index["state"] == "active":
                break
            assert time.monotonic() < until, index
            await asyncio.sleep(0.05)
        await self.insist("hw.query.count", {"bucket": "people", "index": "by_age", "consistency": "request_plus"})
        (index,) = (await self.ask("hw.query.list", {"bucket": "people"}))["indexes"]
        assert (index["progress"], index["docs_pending"], index["error"]) == (1.0, 0, None), index
        assert index["keys"] == ["age DESC", "address.city"], index
        return "by_age on age DESC, address.city is active"

    async def test_scans_in_index_order(self):
        reply = await self.insist("hw.query.scan", {"bucket": "people", "index": "by_age", "consistency": "request_plus"})
        rows = [(row["id"], row["key"], row["include"]) for row in reply["rows"]]
        assert rows == [
            ("u3", [85, "Arlington"], {"name": "Grace"}),
            ("u4", [72, "Nuenen"], {"name": "Edsger"}),
            ("u5", [36, "Boston"], {"name": "Barbara"}),
            ("u1", [36, "London"], {"name": "Ada"}),
            ("guests.u7", [30, "Geneva"], {"name": "Tim"}),
            ("u2", [21, "Helsinki"], {"name": "Linus"}),
        ], rows
        assert reply["exact"] is True and reply["unindexed"] == 0 and reply["page_token"] is None, reply
        assert reply["st"] > 0 and reply["timestamp"]["KV_people"]["seqno"] == len(PEOPLE), reply
        span = {"low": [30], "high": [36]}
        assert await self.ids(spans=[span]) == ["u5", "u1", "guests.u7"]
        assert await self.ids(spans=[{**span, "inclusion": "low"}]) == ["guests.u7"]
        assert await self.ids(spans=[{"equal": [36]}], reverse=True) == ["u1", "u5"]
        assert await self.ids(spans=[{"equal": [21]}, {"low": [80]}, {"equal": [85]}]) == ["u3", "u2"]
        assert await self.ids(offset=1, limit=2) == ["u4", "u5"]
        count = await self.insist("hw.query.count", {"bucket": "people", "index": "by_age", "spans": [span]})
        assert count["count"] == 3, count
        return "all rows, ranges, lookups, a union, reverse, offset and limit, a count"

    async def test_pages_at_one_stability_timestamp(self):
        request = {"bucket": "people", "index": "by_age", "page_size": 2}
        reply = await self.insist("hw.query.scan", request)
        st, seen, pages = reply["st"], [], 1
        # What is written between two pages is not in them.
        await self.kv.put("late", json.dumps({"age": 1, "address": {"city": "Bergen"}}).encode())
        while True:
            assert reply["st"] == st and len(reply["rows"]) <= 2, reply
            seen += [row["id"] for row in reply["rows"]]
            if reply["page_token"] is None:
                break
            reply = await self.ask("hw.query.scan", {**request, "page_token": reply["page_token"]})
            pages += 1
        assert seen == ["u3", "u4", "u5", "u1", "guests.u7", "u2"], seen
        await self.kv.delete("late")
        return f"6 rows in {pages} pages, all at stability timestamp {st}"

    async def test_reads_its_own_writes(self):
        for turn in range(50):
            revision = await self.kv.put("u1", json.dumps({"age": 100 + turn, "address": {"city": "Ockham"}}).encode())
            spans = [{"equal": [100 + turn]}]
            request = {"bucket": "people", "index": "by_age", "spans": spans}
            for consistency in ({"at_plus": revision}, {"at_plus": {"KV_people": revision}}, "request_plus"):
                reply = await self.insist("hw.query.count", {**request, "consistency": consistency})
                assert reply["count"] == 1, (turn, consistency, reply)
                assert reply["timestamp"]["KV_people"]["seqno"] >= revision, (turn, consistency, reply)
        # A reply's whole timestamp is accepted back.
        again = await self.insist("hw.query.count", {**request, "consistency": {"at_plus": reply["timestamp"]}})
        assert again["count"] == 1, again
        return "50 updates, each seen at once with at_plus and request_plus"

    async def test_follows_updates_deletes_and_purges(self):
        await self.kv.put("u6", json.dumps({"age": 50, "address": {"city": "Oslo"}}).encode())
        assert await self.ids(spans=[{"equal": [50]}], consistency="request_plus") == ["u6"]
        await self.kv.delete("u6")
        assert await self.ids(spans=[{"equal": [50]}], consistency="request_plus") == []
        await self.kv.purge("u2")
        assert await self.ids(spans=[{"equal": [21]}], consistency="request_plus") == []
        entry = await self.kv.get("u3")
        await self.kv.update("u3", json.dumps({"name": "Grace", "address": {"city": "Arlington"}}).encode(), last=entry.revision)
        assert await self.ids(spans=[{"equal": [85]}], consistency="request_plus") == [], "a missing leading key has no entry"
        await self.kv.put("u4", b"not json {")
        reply = await self.insist("hw.query.scan", {"bucket": "people", "index": "by_age", "consistency": "request_plus"})
        assert [row["id"] for row in reply["rows"]] == ["u1", "u5", "guests.u7"], reply
        assert reply["unindexed"] == 1, reply
        described = await self.ask("hw.query.describe", {"bucket": "people", "index": "by_age"})
        (lost,) = described["unindexed"]
        assert (lost["id"], lost["reason"]) == ("u4", "not_json"), described
        return "an update, a delete, a purge, a key that went away, a document that is not JSON"

    async def test_takes_a_key_that_the_client_refuses_unless_told_not_to(self):
        # A letter with an accent, and a space that is not ASCII.
        key, spans = "Caf\u00e9\u3000Noir", [{"equal": [44]}]
        document = json.dumps({"age": 44, "address": {"city": "Lyon"}}).encode()
        try:
            await self.kv.put(key, document)
        except nats.js.errors.InvalidKeyError:
            pass
        else:
            raise AssertionError(f"the client takes {key!a} by itself")
        await self.kv.put(key, document, validate_keys=False)
        assert await self.ids(spans=spans, consistency="request_plus") == [key]
        await self.kv.delete(key, validate_keys=False)
        assert await self.ids(spans=spans, consistency="request_plus") == []
        return f"{key!a} is indexed, and not any more once it is deleted"

    async def test_is_told_what_was_wrong(self):
        scan = {"bucket": "people", "index": "by_age"}
        cases = [
            ("hw.query.scan", {**scan, "index": "nope"}, None, "index_not_found", 404, "nope"),
            ("hw.query.scan", {**scan, "limti": 3}, None, "unknown_field", 400, "limti"),
            ("hw.query.scan", {**scan, "spans": [{"low": [9], "high": [1]}]}, None, "span_inverted", 400, ""),
            ("hw.query.count", None, b"{", "malformed_request", 400, "JSON"),
            ("hw.admin.index.create", {"bucket": "people", "name": "by_age", "keys": ["age"]}, None, "index_exists", 409, "by_age"),
            ("hw.admin.index.create", {"bucket": "people", "name": "bad", "keys": ["age +"]}, None, "bad_expression", 400, "keys[0]"),
            ("hw.admin.index.drop", {"bucket": "nowhere", "name": "x"}, None, "bucket_not_found", 404, "nowhere"),
        ]
        for subject, request, raw, code, number, word in cases:
            refused = await self.refused(subject, request, raw)
            assert refused.error["code"] == code and refused.error["retry"] is False, (request, refused.error)
            assert word in refused.error["message"], (word, refused.error)
            assert refused.headers.get("Nats-Service-Error") == code, (request, refused.headers)
            assert refused.headers.get("Nats-Service-Error-Code") == str(number), (request, refused.headers)
        return f"{len(cases)} refusals, each with its code, both headers and the culprit"

    async def test_drops_the_index_and_keeps_the_documents(self):
        reply = await self.ask("hw.admin.index.drop", {"bucket": "people", "name": "by_age"})
        assert reply["index"]["name"] == "by_age", reply
        assert (await self.ask("hw.query.list", {"bucket": "people"}))["indexes"] == []
        assert json.loads((await self.kv.get("u5")).value)["name"] == "Barbara"
        refused = await self.refused("hw.query.scan", {"bucket": "people", "index": "by_age"})
        assert refused.error["code"] == "index_not_found", refused.error
        return "by_age is gone, the documents are there"


async def run(url, fleet):
    nc = await nats.connect(url, connect_timeout=5)
    story, passed = Story(nc), 0
    tests = [name for name in vars(Story) if name.startswith("test_")]
    for name in tests:
        title = name[len("test_"):].replace("_", " ")
        try:
            did = await asyncio.wait_for(getattr(story, name)(), 90)
            fleet.check()
        except Exception:
            traceback.print_exc()
            print(f"FAILED  {title}")
            # The later tests stand on the earlier ones.
            break
        print(f"ok      {title}: {did}")
        passed += 1
    await nc.close()
    return passed, len(tests)


def main():
    missing = [name for name in ("HIGHWATER_BIN", "HIGHWATER_NATS_SERVER") if not os.environ.get(name)]
    if missing:
        print(f"set {' and '.join(missing)}, or run `cargo xtask test`", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="highwater-foreign-") as directory:
        fleet = Fleet(directory)
        try:
            url = fleet.start(os.environ["HIGHWATER_BIN"], os.environ["HIGHWATER_NATS_SERVER"])
            passed, total = asyncio.run(run(url, fleet))
            if passed < total:
                for name, _ in fleet.children[1:]:
                    print(f"-- end of the log of {name}:\n{fleet.text(name, 'log')[-1500:]}", file=sys.stderr)
        finally:
            fleet.stop()
    print(f"{passed} passed, {total - passed} failed")
    return 0 if passed == total else 1


if __name__ == "__main__":
    sys.exit(main())
