"""Inputs of siblings.toml: the faults of the other tables again, from other reports, with other tools' captures and an older version's records.

Facts: dumpcap writes pcapng with nanoseconds (if_tsresol 9), an interface's name and a section's application; `tcpdump -i any` writes Linux
cooked headers (SLL, or SLL2 with the interface's number); a tunnel device has no link layer (raw IP); a trunk port has VLAN tags; tcpdump -s 96
cuts packets; a big-endian host writes big-endian files. Records of version 0.1.0's first builds lack the optional fields.

Run it in this directory: `python3 siblings.py`.
"""

import json
import struct

from capture import ACK, EPOCH, FIN, HERE, IMDS, SYN, Capture
from records import Caller, Records
from windows import block, option

ID = "/latest/meta-data/instance-id"
ROLES = "/latest/meta-data/iam/security-credentials/"
TOKEN = "AQAEmade-up-token-0000000000000000000000000000000000000=="
V6 = "fd00:ec2::254"


class Foreign(Capture):
    """shape: dumpcap, nanoseconds, big-endian, sll, sll2, raw, vlan; size: bytes that are kept of a packet."""

    def __init__(self, name, shape, size=None, interface="eth0", uplink=None):
        super().__init__(name)
        self.shape, self.size, self.interface, self.uplink = shape, size, interface, uplink

    def link(self, data):
        """Another link layer instead of Ethernet's."""
        kind, packet = data[12:14], data[14:]
        if self.shape == "sll":
            return struct.pack("!HHH8s", 4, 1, 6, bytes.fromhex("0a00000000020000")) + kind + packet
        if self.shape == "sll2":
            return kind + struct.pack("!HIHBB8s", 0, 2, 1, 4, 6, bytes.fromhex("0a00000000020000")) + packet
        if self.shape == "raw":
            return packet
        if self.shape == "vlan":
            return data[:12] + struct.pack("!HH", 0x8100, 42) + data[12:]
        return data

    def write(self):
        packets = sorted(self.packets, key=lambda packet: packet[0])
        if self.shape == "dumpcap":
            section = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + option(4, b"Dumpcap (Wireshark) 4.2.2") + option(0, b"")
            described = option(2, self.interface.encode()) + option(9, bytes([9])) + option(12, b"Linux 6.1.0") + option(0, b"")
            blocks = [block(0x0A0D0D0A, section), block(1, struct.pack("<HHI", 1, 0, self.size or 0) + described)]
            for time, data in packets:
                stamp = EPOCH * 10**9 + round(time * 1e9)
                part = data[: self.size]
                head = struct.pack("<IIIII", 0, stamp >> 32, stamp & 0xFFFFFFFF, len(part), len(data))
                blocks.append(block(6, head + part + bytes(-len(part) % 4)))
            self.path.write_bytes(b"".join(blocks))
            return
        order = ">" if self.shape == "big-endian" else "<"
        magic, unit = (0xA1B23C4D, 10**9) if self.shape == "nanoseconds" else (0xA1B2C3D4, 10**6)
        network = {"sll": 113, "sll2": 276, "raw": 101}.get(self.shape, 1)
        with open(self.path, "wb") as file:
            file.write(struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, self.size or 262_144, network))
            for time, data in packets:
                data, stamp = self.link(data), round(time * unit)
                part = data[: self.size]
                file.write(struct.pack(order + "IIII", EPOCH + stamp // unit, stamp % unit, len(part), len(data)) + part)


def old(name):
    """Takes away what records had not yet in the first builds."""
    path = HERE / name
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        for key in ("waited_ns", "connect_ns", "closed_by", "wire_syns", "syn_acks", "icmp"):
            line.pop(key, None)
        for part, keys in {"connection": ("interface", "cgroup", "netns"), "request": ("retransmits", "hops", "ttl_on_wire"),
                           "response": ("retransmits", "icmp", "via_proxy", "length")}.items():
            for key in keys:
                if line.get(part):
                    line[part].pop(key, None)
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def lost(connection, *waits, status=200, length=56, ttl=1, until=1.0):
    """The response comes again after each of `waits`; the client acknowledges none of it and closes."""
    start, asked = connection.seq[False], connection.time
    for wait in waits:
        connection.seq[False] = start
        connection.response(status, length, ttl=ttl, acked=False, after=wait)
    connection.seq[False] = start
    connection.segment(True, FIN | ACK, at=asked + until)


def refused_by_icmp(capture, time, client, gateway="10.42.3.1", times=1):
    """SYNs that the gateway answers with ICMP port unreachable."""
    for n in range(times):
        connection = capture.connect(time + n, client, answered=False)
        syn = capture.packets[-1][1][14:]
        capture.ip(connection.time + 0.0001, gateway, client, 1, struct.pack("!BBHI", 3, 3, 0, 0) + syn[:28])


# 1. A refused token request.

with Foreign("kube2iam-put-403-slowly.pcapng", "dumpcap") as c:
    for n in range(6):
        connection = c.connect(60 * n, "100.100.0.15", rtt=0.001)
        connection.token(agent="aws-sdk-java/2.10.25").response(403, 0, server=None, after=0.7, ttl=63).close()
        c.connect(60 * n + 1, "100.100.0.15").get(ROLES, agent="aws-sdk-java/2.10.25").response(200, 12, server=None, ttl=63).close()

with Foreign("transparent-squid-404.pcap", "vlan") as c:
    for n in range(4):
        via = ["Via: 1.1 gw-3 (squid/4.6)", "X-Squid-Error: ERR_INVALID_URL 0"]
        c.connect(30 * n, "10.9.0.4").token(agent="salt/3005").response(404, 3_400, via, server="squid/4.6", ttl=62).close()
        c.connect(30 * n + 1, "10.9.0.4").get("/latest/meta-data/", agent="salt/3005").response(404, 3_400, via, server="squid/4.6", ttl=62).close()

with Foreign("kube2iam-put-502-one-in-ten.pcap", "nanoseconds") as c:
    for n in range(100):
        status = 502 if n % 10 == 4 else 200
        connection = c.connect(2 * n, "10.10.213.42").token(agent="aws-sdk-java/1.11").response(status, 0 if status == 502 else 56, server=None, ttl=63)
        connection.close()
        if status == 200:
            c.connect(2 * n + 0.5, "10.10.213.42").get("/latest/meta-data/ami-id", TOKEN, agent="aws-sdk-java/1.11").response(200, 21, server=None, ttl=63).close()

with Foreign("mock-without-put-501.pcap", "big-endian") as c:
    for n in range(5):
        c.connect(20 * n, "192.168.50.7").token(agent="aws-sdk-go/1.44.0").response(501, 350, server="SimpleHTTP/0.6 Python/3.9.2", ttl=64).close()
        c.connect(20 * n + 0.1, "192.168.50.7").get(ROLES, agent="aws-sdk-go/1.44.0").response(200, 8, server="SimpleHTTP/0.6 Python/3.9.2", ttl=64).close()

# 2. Responses without usable credentials.

with Foreign("trust-policy-of-another-service.pcap", "sll2") as c:
    # An agent that requests credentials every 30 min.
    for n in range(6):
        c.connect(1_800 * n, "10.0.5.20").token(agent="aws-sdk-go/1.38.0").response(200, 56, ttl=1).close()
        c.connect(1_800 * n + 0.1, "10.0.5.20").get(ROLES, TOKEN, agent="aws-sdk-go/1.38.0").response(200, 8).close()
        c.connect(1_800 * n + 0.2, "10.0.5.20").get(ROLES + "builders", TOKEN, agent="aws-sdk-go/1.38.0").response(200, 281).close()

with Foreign("trust-policy-crash-loop.pcapng", "dumpcap", size=320) as c:
    # A container that is restarted after each failure: 10, 20, 40 and then 60 s.
    time = 0
    for n in range(10):
        time += min(10 * 2**n, 60)
        c.connect(time, "10.0.5.21").token(agent="s5cmd/2.0").response(200, 56, ttl=1).close()
        c.connect(time + 0.1, "10.0.5.21").get(ROLES, TOKEN, agent="s5cmd/2.0").response(200, 8).close()
        c.connect(time + 0.2, "10.0.5.21").get(ROLES + "readers", TOKEN, agent="s5cmd/2.0").response(200, 281).close()

# 3. Missing paths below iam/.

with Foreign("dotnet-keeps-the-old-profile.pcap", "raw") as c:
    for n in range(4):
        c.connect(900 * n, "10.0.6.3").token(agent="aws-sdk-dotnet-coreclr/3.7").response(200, 56, ttl=1).close()
        c.connect(900 * n + 0.1, "10.0.6.3").get(ROLES + "web-old", TOKEN, agent="aws-sdk-dotnet-coreclr/3.7").response(200, 1_298).close()
    for n in range(30):
        # The profile was changed, but this client doesn't read the list.
        c.connect(3_700 + 20 * n, "10.0.6.3").token(agent="aws-sdk-dotnet-coreclr/3.7").response(200, 56, ttl=1).close()
        c.connect(3_700 + 20 * n + 0.1, "10.0.6.3").get(ROLES + "web-old", TOKEN, agent="aws-sdk-dotnet-coreclr/3.7").response(404, 339).close()
    for n in range(3):
        # Another program on the host reads the new profile's credentials.
        c.connect(3_800 + 180 * n, "10.0.6.3").token(agent="Boto3/1.34.0").response(200, 56, ttl=1).close()
        c.connect(3_800 + 180 * n + 0.1, "10.0.6.3").get(ROLES, TOKEN, agent="Boto3/1.34.0").response(200, 7).close()
        c.connect(3_800 + 180 * n + 0.2, "10.0.6.3").get(ROLES + "web-new", TOKEN, agent="Boto3/1.34.0").response(200, 1_298).close()

with Foreign("kube2iam-pod-not-found-slowly.pcap", "sll") as c:
    for n in range(25):
        c.connect(15 * n, "10.42.5.13").get(ROLES, agent="aws-cli/2.11").response(404, 35, server=None, after=2.69, ttl=64).close()
        c.connect(15 * n + 5, "10.42.5.13").get("/latest/meta-data/", agent="aws-cli/2.11").response(200, 281, server=None, ttl=64).close()

with Foreign("nova-metadata-all-404.pcap", "vlan") as c:
    for n in range(60):
        c.connect(2 * n, "192.168.0.7").get("/2009-04-04/meta-data/instance-id", agent="Cloud-Init/0.7.6").response(404, 154, server=None, ttl=64).close()

# 4. Refusals of one path.

with Foreign("agent-role-path-with-slash-403.pcapng", "dumpcap") as c:
    for n in range(30):
        c.connect(15 * n, "10.100.128.7").get(ROLES, agent="Go-http-client/1.1").response(200, 24, server=None, ttl=64).close()
        c.connect(15 * n + 1, "10.100.128.7").get(ROLES + "kubernetes-agent/", agent="Go-http-client/1.1").response(403, 52, server=None, ttl=64).close()

# 5. Redirects.

with Foreign("listing-without-slash-301-followed.pcap", "nanoseconds") as c:
    for n in range(12):
        location = [f"Location: http://{IMDS}{ROLES}"]
        c.connect(300 * n, "10.0.7.3").token(agent="curl/7.29.0").response(200, 56, ttl=1).close()
        c.connect(300 * n + 0.1, "10.0.7.3").get(ROLES.rstrip("/"), TOKEN, agent="curl/7.29.0").response(301, 0, location).close()
        c.connect(300 * n + 0.2, "10.0.7.3").get(ROLES, TOKEN, agent="curl/7.29.0").response(200, 8).close()

with Foreign("gateway-308-to-https.pcap", "raw") as c:
    for n in range(15):
        location = [f"Location: https://{IMDS}/latest/api/token"]
        c.connect(20 * n, "10.77.0.3").token(agent="grafana-agent/0.40").response(308, 164, location, server="nginx", ttl=61).close()

# 6. v1 by method.

with Foreign("options-on-the-token-path.pcap", "sll2") as c:
    for n in range(5):
        c.connect(10 * n, "10.0.8.3").request("OPTIONS", "/latest/api/token", agent="curl/7.48.0").response(200, 0, ["Allow: OPTIONS, PUT"]).close()

# 7. Rejected tokens.

with Foreign("token-baked-into-image.pcap", "vlan") as c:
    for n in range(40):
        c.connect(30 * n, "10.0.9.3").get("/latest/meta-data/placement/region", "AQAEbaked-into-the-image==", agent="vector/0.34").response(401, 339).close()

with Foreign("token-for-60-s-used-for-hours.pcapng", "dumpcap", size=128) as c:
    c.connect(0, "10.0.9.4").token(ttl=60, agent="backup-agent/1.2").response(200, 56, ttl=1).close()
    for n in range(60):
        c.connect(1 + 20 * n, "10.0.9.4").get(ID, TOKEN, agent="backup-agent/1.2").response(401 if n > 2 else 200, 339 if n > 2 else 19).close()

# 8. Connections that end without a response, and responses that are dropped on the return path.

with Foreign("mesh-without-upstream-closes.pcap", "sll") as c:
    for n in range(8):
        connection = c.connect(15 * n, "10.3.1.8", response_ttl=64).get(ROLES, TOKEN, agent="aws-sdk-js/3")
        connection.segment(False, ACK)
        connection.segment(False, FIN | ACK, at=connection.time + 10)
        connection.segment(True, FIN | ACK)
        connection.segment(False, ACK)

with Foreign("syn-acks-return-and-are-not-taken.pcap", "vlan") as c:
    for n in range(6):
        connection = c.connect(40 * n, "10.8.2.9", answered=False)
        start = connection.time
        connection.seq[True] -= 1
        for after in (0.0002, 1.0, 3.0, 7.0):
            connection.seq[True] += 1
            connection.segment(False, SYN | ACK, at=start + after, count=False)
            connection.seq[True] -= 1
            if after > 0.5:
                connection.segment(True, SYN, at=start + after + 0.01, count=False)

with Records("ingress-deny-drops-syn-acks.ndjson") as r:
    pod = Caller(5101, "/usr/bin/curl", pod="test/probe-0")
    for n in range(5):
        at = 15 * n
        connection = r.connection(pod, 0)
        for again in (0.0003, 1.03, 3.05):
            r.add("drop", at + again, process=pod.process, container=pod.container, connection=connection, direction="response", reason="NETFILTER_DROP",
                  location="nf_hook_slow", ttl=64, netns=pod.netns)
        r.add("connect", at, at + 10, process=pod.process, container=pod.container, connection=connection, outcome="timeout", errno=110, elapsed_ns=10_000_000_000,
              icmp=None, dropped="NETFILTER_DROP", syns=4, wire_syns=4, syn_acks=3)

# 9. Redirected to a port of this host.

with Records("stale-dnat-of-deleted-agent.ndjson") as r:
    pod = Caller(5201, "/app/autoscaler", pod="kube-system/cluster-autoscaler-6d9f")
    for n in range(12):
        r.connect(10 * n, pod, "refused", 111, elapsed=0.0002, syns=1, wire_syns=0)
old("stale-dnat-of-deleted-agent.ndjson")

# 10. Clients with link-local addresses.

with Foreign("link-local-container-healthy.pcap", "raw") as c:
    for n in range(15):
        c.connect(20 * n, "169.254.1.2").token(agent="podman-app/1").response(200, 56, ttl=2).close()
        connection = c.connect(20 * n + 0.1, "169.254.1.2")
        connection.get(ID, TOKEN, agent="podman-app/1").response(200, 19)
        connection.get(ROLES, TOKEN, agent="podman-app/1").response(200, 8).close()

# 11. Packets per second.

with Capture("coredns-to-base-plus-two.pcap.gz") as c:
    for second in range(5):
        for n in range(620):
            time = second + n / 620
            c.udp(time, "10.28.4.11", 20_000 + n, "10.28.0.2", 53, b"q" * 40)
            c.udp(time + 0.0004, "10.28.0.2", 53, "10.28.4.11", 20_000 + n, b"a" * 90)
    for n in range(5):
        c.connect(n, "10.28.4.12").get(ID, TOKEN, agent="kubelet/1.29").response(200, 19).close()

# 12. Handshakes.

with Foreign("policy-not-programmed-yet.pcapng", "dumpcap") as c:
    c.connect(1.0, "10.20.3.4", syns=(1,)).token().response(200, 56, ttl=2).close()
    for n in range(20):
        c.connect(3 + 10 * n, "10.20.3.4").get(ID, TOKEN).response(200, 19).close()

with Foreign("conntrack-full-one-in-four.pcap", "sll2") as c:
    for n in range(40):
        c.connect(20 * n + 3, "10.20.3.5", syns=((3, 2) if n % 4 == 1 else ())).get(ID, TOKEN).response(200, 19).close()

# 13. Identity of the responding server.

with Foreign("stand-in-for-another-cloud.pcap", "big-endian") as c:
    for n in range(4):
        c.connect(60 * n, "192.168.1.11").token(agent="nomad/1.6").response(404, 19, server=None, ttl=64).close()
        c.connect(60 * n + 0.1, "192.168.1.11").get("/latest/meta-data/ami-id", agent="nomad/1.6").response(404, 19, server=None, ttl=64).close()
        c.connect(60 * n + 0.2, "192.168.1.11").get(ID, agent="nomad/1.6").response(200, 8, server=None, ttl=64).close()

# 16. One cause for many subjects.

with Records("thirty-pods-rejected-in-forward.ndjson.gz") as r:
    for n in range(30):
        pod = Caller(6000 + n, "/app/controller", pod=f"team-{n % 5}/controller-{n}")
        for again in range(3):
            r.connect(10 * again + n / 10, pod, "refused", 111, elapsed=0.0003, syns=1, wire_syns=0, icmp="3/3", dropped="NETFILTER_DROP")

# Rejections by a packet filter between the pod and its node, captured in the pod.

with Foreign("forward-reject-seen-at-the-pod.pcap", "sll") as c:
    refused_by_icmp(c, 0, "10.42.3.9", times=8)

# Tokens required and a hop limit of 1: an agent that sends requests forever.

with Foreign("agent-asks-every-15-s.pcap", "nanoseconds") as c:
    for n in range(40):
        connection = c.connect(15 * n, "10.42.9.4", request_ttl=63).token(agent="Go-http-client/1.1")
        lost(connection, 0.0003, 0.2, until=0.3)
        c.connect(15 * n + 0.31, "10.42.9.4", request_ttl=63).get(ID, agent="Go-http-client/1.1").response(401, 339).close()

with Foreign("guest-behind-nat-never-answered.pcapng", "dumpcap") as c:
    for n in range(6):
        c.connect(30 * n + 7, "192.168.64.5", syns=(7, 6, 4), answered=False)

with Foreign("ipv6-endpoint-refused-tokens.pcap", "sll2") as c:
    for n in range(8):
        connection = c.connect(20 * n, "2600:1f18::15", V6, request_ttl=63).token(agent="Boto3/1.34.0 md/Botocore#1.34.0")
        lost(connection, 0.0003, 0.2, 0.4)

# Thresholds and unknowns.

with Foreign("trust-policy-retried-by-a-boot-script.pcap", "nanoseconds") as c:
    for n in range(6):
        c.connect(4 * n, "10.0.5.22").token(agent="aws-cli/1.11.13").response(200, 56, ttl=1).close()
        c.connect(4 * n + 0.1, "10.0.5.22").get(ROLES, TOKEN, agent="aws-cli/1.11.13").response(200, 8).close()
        c.connect(4 * n + 0.2, "10.0.5.22").get(ROLES + "testing", TOKEN, agent="aws-cli/1.11.13").response(200, 281).close()

with Foreign("role-propagates-in-a-second.pcapng", "dumpcap") as c:
    for n in range(4):
        c.connect(0.6 * n, "10.0.5.23").token(agent="aws-sdk-go/1.44").response(200, 56, ttl=1).close()
        c.connect(0.6 * n + 0.1, "10.0.5.23").get(ROLES + "fresh", TOKEN, agent="aws-sdk-go/1.44").response(200, 281 if n < 3 else 1_298).close()

with Records("lost-tokens-of-unknown-ttl.ndjson") as r:
    pod = Caller(5301, "/app/agent", pod="monitoring/agent-x2x4z")
    for n in range(6):
        r.token(20 * n, pod, ttl=None, response_ttl=None, outcome="lost", delivered=False, waited=1.0)
old("lost-tokens-of-unknown-ttl.ndjson")

with Records("lost-tokens-of-ttl-one-at-an-unknown-distance.ndjson") as r:
    pod = Caller(5302, "/app/agent", pod="monitoring/agent-q9q8z")
    for n in range(6):
        r.token(20 * n, pod, ttl=None, response_ttl=1, outcome="lost", delivered=False, waited=1.0)
old("lost-tokens-of-ttl-one-at-an-unknown-distance.ndjson")
