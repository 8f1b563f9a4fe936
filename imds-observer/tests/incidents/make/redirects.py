"""Inputs of redirects.toml: NAT rules of a host, as the records of a live run hold them.

Facts: REDIRECT and DNAT in nat OUTPUT change the destination before any hook sees a packet, those in PREROUTING outside the pod's own
network namespace; the kernel answers a SYN to a port without a listener with a reset at once; an address without a route keeps the SYN
from leaving the socket.

Run it in this directory: `python3 redirects.py`.
"""

from capture import Capture
from records import CREDENTIALS, HOST_NETNS, Caller, Records

OUTPUT = "nft table ip nat, chain OUTPUT, handle 9, at OUTPUT redirects ({}) requests of this host"
PREROUTING = "nft table ip nat, chain PREROUTING, handle 4, at PREROUTING redirects ({}) requests that this host forwards (from pods)"
AGENT = Caller(6101, "/usr/bin/amazon-ssm-agent")
POD = Caller(6102, "/app/server", pod="shop/web-0")


class Redirected(Records):
    """`rules`: the host's NAT rules for the endpoint, of which the first is the connections'; `to`: where NAT is seen to send them."""

    to = None

    def __init__(self, name, *rules):
        super().__init__(name)
        self.rules = list(rules)
        self.lines[0][1].update(netns=HOST_NETNS, boot_time="2026-03-01T07:00:00.000000000Z", nat_rules=self.rules)

    def add(self, record, at, written=None, **fields):
        super().add(record, at, written, **fields)
        line = self.lines[-1][1]
        if record != "start":
            line["connection"]["redirected_to"] = self.to
        if record == "connect":
            line["nat_rule"] = self.rules[0] if self.rules else None


with Redirected("redirect-to-dead-port.ndjson", OUTPUT.format("redirect to :8181")) as r:
    r.to = "127.0.0.1:8181"
    for n in range(4):
        r.connect(20 * n, AGENT, "refused", 111, 0.0001)

with Redirected("pod-redirected-to-dead-agent.ndjson", PREROUTING.format("dnat to 10.0.1.23:8181")) as r:
    for n in range(4):
        r.connect(20 * n, POD, "refused", 111, 0.0002)

with Redirected("host-dnat-without-a-route.ndjson", OUTPUT.format("dnat to 198.51.100.7:8181")) as r:
    for n in range(4):
        r.connect(20 * n, AGENT, "timeout", 110, 5, syns=0)

with Redirected("pod-dnat-to-loopback-rule-recorded.ndjson", PREROUTING.format("dnat to 127.0.0.1:1338")) as r:
    for n in range(4):
        r.connect(20 * n, POD, "timeout", 110, 5, syns=3)

with Redirected("output-drop-and-no-nat-rule.ndjson") as r:
    for n in range(4):
        r.connect(20 * n, AGENT, "timeout", 110, 5, syns=0)

with Redirected("redirect-to-local-mock-works.ndjson", OUTPUT.format("redirect to :1338")) as r:
    r.to = "127.0.0.1:1338"
    for n in range(10):
        r.token(20 * n, AGENT, response_ttl=None)
        r.exchange(20 * n + 0.01, AGENT, CREDENTIALS, response_ttl=None)

with Redirected("redirected-mock-reads-without-token.ndjson", OUTPUT.format("redirect to :1338")) as r:
    # An IMDS mock for tests, and a program that sends it requests without tokens.
    r.to = "127.0.0.1:1338"
    for n in range(5):
        r.exchange(20 * n, AGENT, "/latest/meta-data/instance-id", version="v1", response_ttl=None)

with Redirected("pod-redirected-to-agent-works.ndjson", PREROUTING.format("dnat to 10.0.1.23:8181")) as r:
    # At the pod's socket, the packets have the endpoint's address. No packet reaches the uplink.
    for n in range(10):
        r.exchange(20 * n, POD, CREDENTIALS + "web", version="v1", response_ttl=None, ttl_on_wire=False)

with Redirected("pod-not-redirected-beside-rule.ndjson", PREROUTING.format("dnat to 10.0.1.23:8181")) as r:
    # The rule matches other pods: these requests reach the uplink, with the endpoint's address.
    for n in range(10):
        r.token(20 * n, POD, ttl=63, ttl_on_wire=True)
        r.exchange(20 * n + 0.01, POD, CREDENTIALS + "web", ttl=63, ttl_on_wire=True)

with Records("syn-acks-with-ttl-1.ndjson") as r:
    for n in range(4):
        r.connect(20 * n, POD, "timeout", 110, 10, syns=4, wire_syns=4, dropped="IP_INHDR@ip_forward")

with Records("syn-acks-with-ttl-1-without-reason.ndjson") as r:
    # Before 5.17, a drop has a kernel function but no reason.
    for n in range(4):
        r.drop(20 * n + 0.001, POD, "response", None, "ip_forward", ttl=1)
        r.connect(20 * n, POD, "timeout", 110, 10, syns=4, wire_syns=4, dropped="unknown@ip_forward", again=True)

with Records("syns-in-routing-loop.ndjson") as r:
    for n in range(4):
        r.drop(20 * n + 0.001, POD, "request", "IP_INHDR", "ip_forward", ttl=1)
        r.connect(20 * n, POD, "timeout", 110, 10, syns=4, dropped="IP_INHDR@ip_forward", icmp="11/0", again=True)

with Capture("imds-and-proxy-read-without-token.pcap") as c:
    # The proxy is installed later. Before that, IMDS itself answered this client without a token.
    for n in range(3):
        c.connect(20 * n, "10.0.1.30").get("/latest/meta-data/instance-id", agent="curl/7.68.0").response(200).close()
    for n in range(3, 12):
        c.connect(20 * n, "10.0.1.30").get("/latest/meta-data/instance-id", agent="curl/7.68.0").response(200, server=None, ttl=64).close()
