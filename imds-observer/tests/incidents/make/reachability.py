"""Inputs of reachability.toml: connections that fail, are redirected, delayed or answered by something else.

Run it in this directory: `python3 reachability.py`.
"""

import json

from capture import ACK, FIN, HERE, IMDS, PSH, Capture

ID = "/latest/meta-data/instance-id"
ROLES = "/latest/meta-data/iam/security-credentials/"
TOKEN = "AQAEmade-up-token-0000000000000000000000000000000000000=="
ENI = "10.0.1.23"


class Trace:
    """Records of a live run, as `stream` writes them; see docs/records.md."""

    def __init__(self, name, interfaces=("ens5",)):
        self.path = HERE / name
        self.connections = 0x5000
        self.lines = [{"record": "start", **self.head(0), "version": "0.1.0", "kernel": "6.12.0", "mode": "live", "endpoints": [IMDS, "fd00:ec2::254"],
                       "interfaces": list(interfaces), "attached": [], "missing": []}]

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.lines.append({"record": "loss", **self.head(900), "ring_buffer": 0, "unparsed": 0, "truncated": 0, "evicted": 0, "unattributed": 0})
            self.path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in self.lines))

    @staticmethod
    def head(time):
        whole = int(time)
        stamp = f"2026-03-01T12:{whole // 60:02}:{whole % 60:02}.{round((time - whole) * 1e9):09}Z"
        return {"schema": 1, "time": stamp, "host": "node-1"}

    def caller(self, pod=None, comm="python3", netns=4026531840):
        cgroup = "/kubepods/burstable/pod7001/" + "7" * 64 if pod else "/system.slice/app.service"
        process = {"pid": 7001, "tid": 7001, "namespace_pid": 1 if pod else None, "comm": comm, "exe": f"/usr/bin/{comm}", "cmdline": [comm, "app.py"], "uid": 1000,
                   "start_time": "2026-03-01T11:00:00.000000000Z", "ancestors": [{"pid": 1, "comm": "systemd"}], "cgroup": cgroup, "netns": netns}
        container = pod and {"id": "7" * 64, "runtime": "containerd", "image": None, "name": "app", "pod": {"namespace": "shop", "name": pod, "uid": "00000000-0000-4000-8000-000000007001"}}
        return {"process": process, "container": container}

    def connection(self, exchange, local="10.0.1.23", redirected_to=None):
        self.connections += 1
        connection = {"id": f"{self.connections:x}", "local": f"{local}:{self.connections}", "remote": f"{IMDS}:80", "exchange": exchange, "interface": None, "cgroup": None, "netns": None}
        return {**connection, "redirected_to": redirected_to} if redirected_to else connection

    def connect(self, time, outcome, errno, elapsed, syns, wire_syns, redirected_to=None, **caller):
        self.lines.append({"record": "connect", **self.head(time), **self.caller(**caller), "connection": self.connection(0, redirected_to=redirected_to), "outcome": outcome, "errno": errno,
                           "elapsed_ns": round(elapsed * 1e9), "syns": syns, "wire_syns": wire_syns, "dropped": None, "icmp": None})

    def exchange(self, time, method, path, outcome, response=None, waited=0.0003, redirected_to=None, request_ttl=64, drop=None, token_ttl=None, **caller):
        """`drop`: reason, location and TTL of the packet with the response."""
        who, connection = self.caller(**caller), self.connection(1, redirected_to=redirected_to)
        if drop:
            reason, location, ttl = drop
            for again in (0.0002, 0.2102, 0.6502):
                if again < waited:
                    self.lines.append({"record": "drop", **self.head(time + again), **who, "connection": {**connection, "exchange": 0}, "direction": "response", "reason": reason,
                                       "location": location, "ttl": ttl, "netns": 4026531840})
        version = "token" if method == "PUT" else "v2"
        self.lines.append({"record": "exchange", **self.head(time), **who, "connection": connection,
                           "request": {"method": method, "path": path, "dialect": "aws", "imds_version": version, "token": None if version == "token" else "5f2a11d07c3b9e84", "token_ttl_s": token_ttl,
                                       "user_agent": "app/1.0", "ttl": request_ttl, "forwarded": False, "retransmits": 0},
                           "response": response and {"status": response[0], "ttl": response[1], "delivered": outcome == "answered", "server": None, "retransmits": 0 if outcome == "answered" else 2,
                                                     "icmp": None, "via_proxy": None},
                           "outcome": outcome, "latency_ns": 300000 if response else None, "waited_ns": round(waited * 1e9), "connect_ns": 50000})


def healthy(capture, time, client=ENI, path=ID, **options):
    return capture.connect(time, client, **options).get(path, TOKEN).response(200).close()


def unreceived(connection, *response, **options):
    """The server sends the response again and again; the client acknowledges none of it and closes after 2 s."""
    start, asked = connection.seq[False], connection.time
    for wait in (0.0003, 0.2, 0.4, 0.8):
        connection.seq[False] = start
        connection.response(*response, after=wait, acked=False, **options)
    connection.seq[False] = start
    connection.segment(True, FIN | ACK, at=asked + 2)


# Connections that are accepted and then closed without a response.

with Capture("mesh-egress-filter-closes.pcap") as c:
    for n in range(6):
        c.connect(10 * n, "10.0.2.40").token().close(by_client=False)
        c.connect(10 * n + 0.1, "10.0.2.40").get(ROLES).close(by_client=False)

with Capture("agent-resets-after-accept.pcap") as c:
    for n in range(5):
        c.connect(3 * n, "172.17.0.3").get(ID, agent="curl/7.58.0").reset(after=0.0002)

with Capture("sidecar-not-ready-at-start.pcap") as c:
    for n in range(2):
        c.connect(0.5 * n, "10.4.0.9").get(ID, TOKEN).reset(after=0.0003)
    for n in range(40):
        healthy(c, 5 + 15 * n, "10.4.0.9")

with Capture("empty-reply-one-in-forty.pcap") as c:
    for n in range(120):
        connection = c.connect(5 * n, "10.0.1.61").get(ID, TOKEN)
        connection.close(by_client=False) if n % 40 == 7 else connection.response(200).close()

with Capture("idle-connection-closed-in-passing.pcap") as c:
    for n in range(20):
        connection = c.connect(60 * n, "10.0.1.62").get(ID, TOKEN).response(200)
        # The server closes the idle connection while the next request is in flight. The client repeats the request on a new connection.
        connection.segment(False, FIN | ACK, at=60 * n + 20)
        connection.get(ID, TOKEN, at=60 * n + 20.00001).reset(after=0.0001)
        healthy(c, 60 * n + 20.001, "10.0.1.62")

# Responses that arrive and are dropped for another reason than their TTL.

with Trace("responses-fail-reverse-path.ndjson", ("eth0", "eth1")) as t:
    for n in range(8):
        t.exchange(20 * n, "GET", ID, "lost", (200, 255), waited=1.0, request_ttl=63, drop=("IP_RPFILTER", "ip_rcv_finish_core", 255), pod="orders-5d5b", netns=4026537001)

with Trace("token-responses-denied-on-ingress.ndjson") as t:
    for n in range(8):
        t.exchange(20 * n, "PUT", "/latest/api/token", "lost", (200, 64), waited=1.0, request_ttl=63, drop=("TC_INGRESS", "sch_handle_ingress", 64), token_ttl=21600, pod="orders-5d5b", netns=4026537001)

with Capture("get-responses-never-acknowledged.pcap") as c:
    for n in range(6):
        unreceived(c.connect(10 * n, "10.244.1.4", request_ttl=63).get(ID, TOKEN), 200, 10)

with Capture("one-response-sent-again.pcap") as c:
    for n in range(30):
        connection = c.connect(10 * n, "10.244.1.5", request_ttl=63).get(ID, TOKEN)
        if n == 11:
            connection.response(200, acked=False)
            connection.segment(False, PSH | ACK, b"x" * 10, at=10 * n + 0.21, count=False)
            connection.segment(True, ACK)
        else:
            connection.response(200)
        connection.close()

# Connections that the client's host redirects, or whose packets never reach an uplink.

with Trace("dnat-to-loopback-without-route-localnet.ndjson") as t:
    for n in range(4):
        t.connect(30 * n, "timeout", 110, 10, 4, 0, redirected_to="127.0.0.1:1338", pod="batch-0", netns=4026537002)

with Trace("host-redirect-to-agent-works.ndjson") as t:
    for n in range(30):
        t.exchange(20 * n, "PUT", "/latest/api/token", "answered", (200, None), redirected_to="10.0.1.23:8181", token_ttl=21600)
        t.exchange(20 * n + 0.01, "GET", ROLES, "answered", (200, None), redirected_to="10.0.1.23:8181")

with Trace("host-redirect-to-agent-down.ndjson") as t:
    for n in range(4):
        t.connect(20 * n, "refused", 111, 0.0002, 1, 0, redirected_to="10.0.1.23:8181")

with Trace("mesh-redirect-resets.ndjson") as t:
    for n in range(6):
        t.exchange(20 * n, "GET", ROLES, "reset", waited=0.01, redirected_to="127.0.0.1:15001", pod="cart-7c9d", netns=4026537003)

with Trace("route-through-unobserved-interface.ndjson", ("eth0",)) as t:
    for n in range(4):
        t.connect(30 * n, "timeout", 110, 10, 4, 0)

with Trace("silent-endpoint-seen-at-the-uplink.ndjson", ("eth0",)) as t:
    for n in range(4):
        t.connect(30 * n, "timeout", 110, 10, 4, 4)

# Captures, in which clients are identified by their addresses, including link-local ones.

with Capture("ipv6-cluster-pod-healthy.pcap") as c:
    for n in range(10):
        c.connect(10 * n, "169.254.172.5", rtt=0.0004).token().response(200, 56, ttl=1).close()
        connection = c.connect(10 * n + 0.1, "169.254.172.5")
        for _ in range(3):
            connection.get(ID, TOKEN).response(200)
        connection.close()
        c.udp(10 * n + 0.2, "169.254.172.5", 40_000 + n, "203.0.113.7", 443, b"x" * 100)

with Capture("ipv6-cluster-pod-lost-token.pcap") as c:
    for n in range(4):
        unreceived(c.connect(10 * n, "169.254.172.9", request_ttl=63).token(agent="Boto3/1.34.0 md/Botocore#1.34.0"), 200, 56, ttl=1)

with Capture("boot-client-without-answer.pcap") as c:
    for n in range(5):
        # `connect` itself adds the last SYN.
        c.connect(12 * n + 7, "192.168.0.94", syns=(7, 6, 4), answered=False)
    for n in range(5):
        healthy(c, 12 * n, "192.168.0.95")

# Handshakes that need several SYNs.

with Capture("every-third-handshake-delayed.pcap") as c:
    for n in range(30):
        healthy(c, 10 * n + 3, "10.0.3.8", syns=((3, 2), (1,), ())[n % 3])

with Capture("first-handshake-of-an-instance-delayed.pcap") as c:
    healthy(c, 3, "10.0.3.9", syns=(3, 2))
    for n in range(40):
        healthy(c, 10 + 5 * n, "10.0.3.9")

with Capture("handshakes-seen-twice.pcap") as c:
    for n in range(20):
        # The same SYN at the pod's interface and, 40 us later, at the host's.
        healthy(c, 10 * n + 0.00005, "10.0.3.10", syns=(0.00004,))

with Capture("half-of-handshakes-time-out-or-wait.pcap") as c:
    for n in range(20):
        if n % 2:
            c.connect(10 * n + 3, "10.0.3.11", syns=(3, 2), answered=False)
        else:
            healthy(c, 10 * n + 1, "10.0.3.11", syns=(1,))

# Responses from another server than IMDS.

with Capture("interception-page-instead-of-metadata.pcap") as c:
    for n in range(6):
        c.connect(10 * n, "10.9.0.4", response_ttl=61).get(ID, agent="Python-urllib/2.7").response(200, 412, ["Content-Type: text/html"], server=None).close()

with Capture("per-pod-proxy-without-server-header.pcap") as c:
    for n in range(6):
        c.connect(10 * n, "10.2.7.3", response_ttl=64).token().response(200, 56, server=None).close()
        c.connect(10 * n + 1, "10.2.7.3", response_ttl=64).get(ROLES, TOKEN).response(200, 20, ["Content-Type: text/plain; charset=utf-8"], server=None).close()

with Capture("stand-in-with-werkzeug-header.pcap") as c:
    for n in range(4):
        c.connect(10 * n, "10.2.7.4", response_ttl=63).get(ROLES, TOKEN).response(200, 20, server="Werkzeug/2.3.7 Python/3.11.4").close()

with Capture("imds-behind-low-hop-limit.pcap") as c:
    for n in range(6):
        c.connect(10 * n, "10.2.7.5").token().response(200, 56, ttl=2).close()
        healthy(c, 10 * n + 1, "10.2.7.5")
        c.connect(10 * n + 2, "10.2.7.5").get(ID).response(401, 300, ["Content-Type: text/html"], reason="Unauthorized").close()
