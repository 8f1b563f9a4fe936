"""Writes the inputs about the packet quota: DNS, NTP and IMDS at one interface."""

import gzip
import json

from capture import Capture, HERE

QUERY = bytes.fromhex("1a2b01000001000000000000") + b"\x03api\x07example\x00\x00\x01\x00\x01"


def dns(capture, client, resolver, per_s, seconds, begin=0.0, port=53, answered=True):
    for number in range(int(per_s * seconds)):
        at, source = begin + number / per_s, 20_000 + number % 40_000
        capture.udp(at, client, source, resolver, port, QUERY)
        if answered:
            capture.udp(at + 0.0004, resolver, port, client, source, QUERY, ttl=255)


def imds(capture, client, per_s, seconds, begin=0.0, agent="amazon-ec2-net-utils/2.5", path="/latest/meta-data/mac"):
    for number in range(int(per_s * seconds)):
        connection = capture.connect(begin + number / per_s, client)
        connection.get(path, token="made-up-token", agent=agent).response(200, 17).close()


with Capture("quota-two-coredns-one-interface.pcap.gz") as c:
    for pod in ("10.0.53.20", "10.0.53.41"):
        dns(c, pod, "10.0.0.2", 580, 3)
    imds(c, "10.0.53.7", 2, 3, agent="Botocore/1.34 Python/3.11")

with Capture("quota-nodelocal-cache.pcap.gz") as c:
    dns(c, "10.0.53.20", "169.254.20.10", 1_300, 3)
    dns(c, "10.0.53.7", "10.0.0.2", 40, 3)
    imds(c, "10.0.53.7", 2, 3, agent="Botocore/1.34 Python/3.11")

with Capture("quota-company-resolvers.pcap.gz") as c:
    dns(c, "169.254.25.10", "169.254.25.10", 700, 3)
    dns(c, "10.20.4.9", "10.1.7.53", 700, 3)
    dns(c, "10.20.4.9", "10.100.0.10", 700, 3)

with Capture("quota-net-utils-many-interfaces.pcap.gz") as c:
    imds(c, "10.0.53.7", 190, 3, path="/latest/meta-data/network/interfaces/macs/06:00:00:00:00:0f/local-ipv4s")

with Capture("quota-resolver-ipv6.pcap.gz") as c:
    dns(c, "2600:1f18:1:2::7", "fd00:ec2::253", 900, 3)

with Capture("quota-resolver-tcp.pcap.gz") as c:
    for number in range(3 * 190):
        connection = c.connect(number / 190, "172.31.8.9", "172.31.0.2", server_port=53, response_ttl=255)
        connection.segment(True, 0x18, QUERY)
        connection.segment(False, 0x18, QUERY)
        connection.close()

with Capture("quota-ntp.pcap.gz") as c:
    dns(c, "10.0.53.7", "169.254.169.123", 600, 3, port=123)

with Capture("quota-container-credentials.pcap.gz") as c:
    for number in range(3 * 200):
        connection = c.connect(number / 200, "10.0.53.30", "169.254.170.2")
        connection.request("GET", "/v4/0f1e2d3c4b5a-made-up/task/stats", agent="datadog-agent/7.50").response(200, 900, server=None).close()


def recorded(name, samples, exchanges=()):
    """Our own records of one host: `samples`: per interval of 10 s the interface's numbers."""
    second = lambda at: f"2026-03-01T12:{int(at) // 60:02}:{int(at) % 60:02}.{round(at % 1 * 1e9):09}Z"
    common = {"schema": 1, "host": "node-1"}
    lines = [{"record": "start", **common, "time": second(0), "version": "0.1.0", "kernel": "6.12.0", "mode": "live", "endpoints": ["169.254.169.254"],
              "interfaces": ["ens5"], "attached": [], "missing": []}]
    for at, comm, path in exchanges:
        process = {"pid": 900, "tid": 900, "namespace_pid": None, "comm": comm, "exe": f"/usr/bin/{comm}", "cmdline": [comm], "uid": 0, "start_time": "2026-03-01T08:00:00Z",
                   "ancestors": [{"pid": 1, "comm": "systemd"}], "cgroup": f"/system.slice/{comm}.service", "netns": 4026531840}
        lines.append({"record": "exchange", **common, "time": second(at), "process": process, "container": None,
                      "connection": {"id": f"{at}", "local": "10.0.1.5:40001", "remote": "169.254.169.254:80", "exchange": 1, "interface": None, "cgroup": None, "netns": None},
                      "request": {"method": "GET", "path": path, "dialect": "aws", "imds_version": "v2", "token": "9f2c51d0aaaa", "token_ttl_s": None,
                                  "user_agent": "aws-sdk-go/1.44", "ttl": 64, "forwarded": False, "retransmits": 0},
                      "response": {"status": 200, "ttl": 255, "delivered": True, "server": None, "retransmits": 0, "icmp": None, "via_proxy": None},
                      "outcome": "answered", "latency_ns": 300_000, "waited_ns": 300_000})
    for number, sample in enumerate(samples):
        peak = sum(sample["by_class"].values())
        interface = {"name": "ens5", "egress_packets": peak * 8, "ingress_packets": peak * 8, "peak_packets_per_s": peak, "quota_share": peak / 1024,
                     "allowance_exceeded": sample["exceeded"], "peak_by_class": sample["by_class"]}
        lines.append({"record": "summary", **common, "time": second(10 * number + 10), "total": False, "from": second(10 * number), "to": second(10 * number + 10),
                      "interval_ns": 10_000_000_000, "processes": [], "interfaces": [interface], "other_requests": 0})
    lines.sort(key=lambda line: (line["time"], line["record"] == "summary"))
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
    (HERE / name).write_bytes(gzip.compress(text, mtime=0) if name.endswith(".gz") else text)


agent = [(5.0 * n + 1, "amazon-ssm-agen", "/latest/meta-data/instance-id") for n in range(11)]
recorded("quota-allowance-dns-larger.ndjson", [{"by_class": {"dns": 1_290, "imds": 12}, "exceeded": 240}] * 6, agent)
recorded("quota-allowance-imds-larger.ndjson.gz", [{"by_class": {"dns": 90, "imds": 1_010}, "exceeded": 77}] * 6,
         [(n * 0.02, "checker", "/latest/meta-data/instance-id") for n in range(3_000)])
