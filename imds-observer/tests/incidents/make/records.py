"""Writes our own records from a description of what happened: `with Records("NAME.ndjson.gz") as r: r.exchange(...)`.

Times are seconds since 2026-03-01 12:00:00 UTC. Tokens are made-up hashes, identifiers are made up.
"""

import gzip
import hashlib
import json

from capture import HERE

HOST_NETNS = 4026531840
TOKEN = "/latest/api/token"
CREDENTIALS = "/latest/meta-data/iam/security-credentials/"


def time(seconds):
    return f"2026-03-01T{12 + int(seconds) // 3600:02}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}.{round(seconds % 1 * 1e9):09}Z"


class Caller:
    """A process on the host, or in a pod or container."""

    def __init__(self, pid, program, unit=None, pod=None, container=None, arguments=(), netns=None):
        comm = program.rsplit("/", 1)[-1][:15]
        digest = hashlib.sha256(f"{pod}{container}".encode()).hexdigest()
        uid = f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"
        cgroup = f"/system.slice/{unit or comm + '.service'}"
        if pod:
            cgroup = f"/kubepods/besteffort/pod{uid}/{digest}"
        elif container:
            cgroup = f"/docker/{digest}"
        inside = bool(pod or container)
        self.netns = netns or (4026532000 + pid if inside else HOST_NETNS)
        self.local = f"10.0.1.{pid % 200 + 20}"
        self.process = {"pid": pid, "tid": pid, "namespace_pid": None, "comm": comm, "exe": program, "cmdline": [comm, *arguments], "uid": 0,
                        "start_time": "2026-03-01T08:00:00.000000000Z", "ancestors": [{"pid": 1, "comm": "containerd-shim" if inside else "systemd"}],
                        "cgroup": cgroup, "netns": self.netns}
        self.container = None
        if inside:
            namespace, _, name = (pod or "").partition("/")
            self.container = {"id": digest, "runtime": "containerd" if pod else "docker", "name": container or name.split("-")[0], "image": None,
                              "pod": {"namespace": namespace, "name": name, "uid": uid} if pod else None}


class Records:
    def __init__(self, name, host="node-1", interfaces=("ens5",)):
        self.path = HERE / name
        self.common = {"schema": 1, "host": host}
        self.lines = []
        self.connections = 0
        self.add("start", -1, version="0.1.0", kernel="6.12.0", mode="live", endpoints=["169.254.169.254", "fd00:ec2::254"], interfaces=list(interfaces), attached=[],
                 missing=[])

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.lines.sort(key=lambda line: line[0])
            text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for _, line in self.lines).encode()
            self.path.write_bytes(gzip.compress(text, mtime=0) if self.path.suffix == ".gz" else text)

    def add(self, record, at, written=None, **fields):
        self.lines.append((at if written is None else written, {"record": record, "schema": 1, "time": time(max(at, 0)), "host": self.common["host"], **fields}))

    def connection(self, caller, exchange=1, endpoint="169.254.169.254:80", again=False):
        self.connections += not again
        return {"id": f"c{self.connections}", "local": f"{caller.local}:{30_000 + self.connections % 30_000}", "remote": endpoint, "exchange": exchange,
                "interface": None, "cgroup": None, "netns": None}

    def exchange(self, at, caller, path, status=200, method="GET", version="v2", token="5f3a-made-up", agent=None, ttl=64, response_ttl=255, outcome="answered",
                 latency=0.0003, waited=None, server="EC2ws", forwarded=False, endpoint="169.254.169.254:80", icmp=None, delivered=True, retransmits=0, ttl_on_wire=None, **response):
        """A request and what became of it; status=None: no response was seen."""
        waited = latency if waited is None else waited
        answer = None
        if status is not None:
            answer = {"status": status, "ttl": response_ttl, "delivered": delivered, "server": server, "retransmits": retransmits, "icmp": icmp, "via_proxy": None, **response}
        self.add("exchange", at, at + waited, process=caller.process, container=caller.container, connection=self.connection(caller, endpoint=endpoint),
                 request={"method": method, "path": path, "dialect": "aws", "imds_version": version, "token": token if version == "v2" else None,
                          "token_ttl_s": 21_600 if version == "token" else None, "user_agent": agent, "ttl": ttl, "forwarded": forwarded, "retransmits": 0, **({} if ttl_on_wire is None else {"ttl_on_wire": ttl_on_wire})},
                 response=answer, outcome=outcome, latency_ns=None if status is None else round(latency * 1e9), waited_ns=round(waited * 1e9))

    def token(self, at, caller, **options):
        self.exchange(at, caller, TOKEN, method="PUT", version="token", **options)

    def lost_token(self, at, caller, ttl=63, response_ttl=1, waited=1.0, agent=None):
        """The response arrived at the uplink and was dropped for its TTL on the way to the caller."""
        self.token(at, caller, ttl=ttl, response_ttl=response_ttl, outcome="lost", delivered=False, waited=waited, agent=agent, icmp="11/0", retransmits=2)

    def connect(self, at, caller, outcome, errno=None, elapsed=0.001, syns=1, wire_syns=0, icmp=None, dropped=None, endpoint="169.254.169.254:80", again=False):
        """`again`: of the connection of the last record."""
        self.add("connect", at, at + elapsed, process=caller.process, container=caller.container, connection=self.connection(caller, 0, endpoint, again), outcome=outcome,
                 errno=errno, elapsed_ns=round(elapsed * 1e9), icmp=icmp, dropped=dropped, syns=syns, wire_syns=wire_syns)

    def drop(self, at, caller, direction, reason, location, ttl=64, netns=HOST_NETNS):
        self.add("drop", at, process=caller.process, container=caller.container, connection=self.connection(caller, 0), direction=direction, reason=reason,
                 location=location, ttl=ttl, netns=netns)
