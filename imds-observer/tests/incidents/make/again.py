"""Inputs of again.toml: the classes of the other tables in further public reports.

Run it in this directory: `python3 again.py`.
"""

from capture import Capture
from records import Caller, Records

ID = "/latest/meta-data/instance-id"
ROLES = "/latest/meta-data/iam/security-credentials/"
TOKEN = "AQAEmade-up-token-0000000000000000000000000000000000000=="
QUERY = bytes.fromhex("1a2b01000001000000000000") + b"\x03api\x07example\x00\x00\x01\x00\x01"
GO, CURL = "aws-sdk-go/1.44.0 (go1.19; linux; amd64)", "curl/7.88.1"

with Capture("ingress-controller-token-reset-once.pcap") as c:
    # The first token request after a start is reset. The container is restarted, and works for an hour.
    c.connect(0, "10.150.25.8").token(agent=GO).reset()
    c.connect(20, "10.150.25.8").token(agent=GO).response(200, 56, ttl=1).close()
    c.connect(20.1, "10.150.25.8").get(ROLES, TOKEN, agent=GO).response(200, 12).close()
    c.connect(20.2, "10.150.25.8").get(ROLES + "ingress-role", TOKEN, agent=GO).response(200, 1_298).close()
    for n in range(60):
        c.connect(21 + 60 * n, "10.150.25.8").get(ID, TOKEN, agent=GO).response(200, 19).close()

with Capture("openstack-agent-400-at-boot.pcap") as c:
    # The network's agent doesn't forward the address by which the service identifies the instance.
    for n in range(60):
        c.connect(1.06 * n, "10.65.0.17").get("/2009-04-04/meta-data/instance-id", agent="Cloud-Init/0.7.5").response(400, 120, server=None, ttl=63).close()

with Capture("mock-of-before-imdsv2.pcap") as c:
    for n in range(5):
        c.connect(300 * n, "172.17.0.1").token(agent="aws-cli/1.18.39").response(404, 19, server=None, ttl=64).close()
        c.connect(300 * n + 0.1, "172.17.0.1").get(ROLES, agent="aws-cli/1.18.39").response(200, 8, server=None, ttl=64).close()
        c.connect(300 * n + 0.2, "172.17.0.1").get(ROLES + "dev-role", agent="aws-cli/1.18.39").response(200, 1_298, server=None, ttl=64).close()

with Capture("exit-node-resolves-for-all.pcap.gz") as c:
    for n in range(3 * 800):
        c.udp(n / 800, "10.0.7.4", 20_000 + n % 40_000, "169.254.169.253", 53, QUERY)
        c.udp(n / 800 + 0.0004, "169.254.169.253", 53, "10.0.7.4", 20_000 + n % 40_000, QUERY, ttl=255)
    c.connect(1, "10.0.7.4").get(ID, TOKEN, agent="tailscaled").response(200, 19).close()

with Capture("link-local-source-at-boot.pcap") as c:
    # The host has only a link-local address, so its requests to IMDS are never answered. Each attempt times out after 10 s.
    for n in range(5):
        c.connect(10 * n, "169.254.11.87", syns=(), answered=False)
        for again in (1, 3, 7):
            c.packets.append((10 * n + again, c.packets[-1][1]))

with Capture("sdk-cpp-without-tokens.pcap") as c:
    for n in range(4):
        for part in ("availability-zone-id", "availability-zone"):
            c.connect(2 * n, "10.0.9.20").get("/latest/meta-data/placement/" + part, agent="aws-sdk-cpp/1.8.46").response(401, 0).close()

with Records("hibinit-host-unreachable.ndjson") as r:
    agent = Caller(4484, "/usr/bin/python3", unit="hibinit-agent.service", arguments=("/usr/bin/hibinit-agent",))
    for n in range(4):
        r.connect(274 + 10 * n, agent, "host-unreachable", 113, 3.06, syns=1)
