#!/usr/bin/env python3
"""Inputs of ../refusals.toml: token requests and tokens that are refused, unusable credentials, missing paths, redirects, probes."""

from capture import Capture

CREDENTIALS = "/latest/meta-data/iam/security-credentials"
BOTO = "Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.1 lang/python#3.11"
GO = "aws-sdk-go/1.44.0 (go1.19; linux; amd64)"
MINUTE = 60
HOUR = 3600


def token(n):
    """A made-up token, a different one for each `n`."""
    return f"AQAEA{n:051d}"


def granted(c, time, agent, client="10.0.1.10", server="EC2ws", ttl=21_600):
    connection = c.connect(time, client).token(ttl, agent=agent)
    connection.response(200, 56, server=server, ttl=2 if server == "EC2ws" else None).close()


def refused(c, time, status, agent, client="10.0.1.10", server="EC2ws", path="/latest/api/token", headers=None):
    headers = ["X-aws-ec2-metadata-token-ttl-seconds: 21600"] if headers is None else headers
    c.connect(time, client).request("PUT", path, headers, agent=agent).response(status, 0, server=server).close()


def asked(c, time, path, status, agent, client="10.0.1.10", server="EC2ws", length=10, with_token=None, method="GET", headers=()):
    connection = c.connect(time, client).get(path, with_token, agent=agent, method=method)
    body = b"" if method == "HEAD" else None
    connection.response(status, length, server=server, body=body, headers=headers).close()


def load(c, time, n, agent, role, length, client="10.0.1.10", server="EC2ws"):
    """A token, the role's name, the role's credentials."""
    granted(c, time, agent, client, server)
    asked(c, time + 0.01, f"{CREDENTIALS}/", 200, agent, client, server, len(role), token(n))
    asked(c, time + 0.02, f"{CREDENTIALS}/{role}", 200, agent, client, server, length, token(n))


# ---- Refused token requests ----

with Capture("put-404-cloud-init.pcap") as c:
    for n in range(6):
        refused(c, 5.0 * n, 404, "Cloud-Init/20.2", server=None)

with Capture("put-405-other-cloud.pcap") as c:
    for n in range(4):
        refused(c, 30.0 * n, 405, GO, server="Metadata Server for VM")
        asked(c, 30.0 * n + 0.01, "/latest/meta-data/instance-id", 404, GO, server="Metadata Server for VM")

with Capture("put-411-no-length.pcap") as c:
    for n in range(3):
        refused(c, 10.0 * n, 411, None, server="nginx", headers=["X-aws-ec2-metadata-token-ttl-seconds: 21600", "Transfer-Encoding: chunked"])

with Capture("put-401-then-401.pcap") as c:
    for n in range(6):
        refused(c, 20.0 * n, 401, "elasticapm-python/6.23", server="gateway")
        asked(c, 20.0 * n + 0.01, "/latest/dynamic/instance-identity/document", 401, "elasticapm-python/6.23", server="gateway")

with Capture("get-token-profiler-405.pcap") as c:
    for n in range(4):
        asked(c, 60.0 * n, "/latest/api/token", 405, "Python-urllib/3.7")

with Capture("get-token-probe-once.pcap") as c:
    asked(c, 0.0, "/latest/api/token", 405, "Ignition/2.9.0")
    granted(c, 1.0, GO)
    asked(c, 1.01, "/latest/meta-data/placement/region", 200, GO, with_token=token(1))

with Capture("put-503-once.pcap") as c:
    refused(c, 0.0, 503, BOTO)
    for n in range(4):
        granted(c, 0.5 + 600.0 * n, BOTO)
        asked(c, 0.51 + 600.0 * n, "/latest/meta-data/placement/region", 200, BOTO, with_token=token(n))

# ---- Responses without usable credentials ----

with Capture("role-not-assumable-java.pcap") as c:
    for n in range(12):
        load(c, 60.0 * n, n, "aws-sdk-java/1.12.730 Linux/5.15", "example-role", 264)

with Capture("role-not-assumable-no-length.pcap") as c:
    # There is no Content-Length, so the server's FIN ends the response.
    for n in range(8):
        connection = c.connect(45.0 * n, "10.0.1.10").get(f"{CREDENTIALS}/app", agent="aws-cli/1.10.45")
        connection.segment(False, 0x18, b"HTTP/1.0 200 OK\r\nServer: EC2ws\r\nContent-Type: text/plain\r\n\r\n" + b"x" * 250, at=45.0 * n + 0.001)
        connection.segment(True, 0x10)
        connection.close(by_client=False)

with Capture("credentials-cut-once.pcap") as c:
    for n, length in enumerate([1_310, 620, 1_310, 1_310, 1_310]):
        load(c, 900.0 * n, n, "aws-sdk-php/3.70.2", "web", length)

with Capture("credentials-churn-control.pcap") as c:
    for n in range(14):
        load(c, 60.0 * n, n, BOTO, "app", 1_310)

with Capture("stand-in-credentials.pcap") as c:
    for n, client in enumerate(["172.17.0.3", "172.17.0.4", "172.17.0.5"]):
        load(c, 5.0 * n, n, BOTO, "default-role", 168, client, "Werkzeug/3.0.1 Python/3.11.6")

# ---- Missing paths ----

with Capture("role-renamed-kotlin.pcap") as c:
    agent = "aws-sdk-kotlin/0.9.5"
    load(c, 0.0, 0, agent, "old-role", 1_310)
    for n in range(8):
        asked(c, 1_800.0 + 20 * n, f"{CREDENTIALS}/old-role", 404, agent, with_token=token(0))
    for n in range(3):
        load(c, 1_810.0 + 40 * n, 10 + n, BOTO, "new-role", 1_310, "10.0.1.20")

with Capture("role-renamed-same-client.pcap") as c:
    # The client lists the role on each load, but requests a name from its configuration.
    agent = "aws-sdk-php/3.200.0"
    for n in range(10):
        status = 200 if n < 3 else 404
        asked(c, 60.0 * n, f"{CREDENTIALS}/", 200, agent, with_token=token(0), length=8)
        asked(c, 60.0 * n + 0.01, f"{CREDENTIALS}/configured-role", status, agent, with_token=token(0), length=1_310 if status == 200 else 20)

with Capture("pod-unknown-to-proxy.pcap") as c:
    for n in range(30):
        asked(c, 20.0 * n, f"{CREDENTIALS}/", 404, "curl/7.68.0", "10.42.5.13", server=None)
    for n in range(3):
        asked(c, 5.0 + 200.0 * n, f"{CREDENTIALS}/", 200, BOTO, "10.42.5.20", server=None)
        asked(c, 5.1 + 200.0 * n, f"{CREDENTIALS}/other", 200, BOTO, "10.42.5.20", server=None, length=1_310)

with Capture("pod-forgotten-by-proxy.pcap") as c:
    # The proxy loses one pod: that pod's listing disappears, while another pod's listing still exists.
    for n in range(30):
        gone = n >= 5
        asked(c, 20.0 * n, f"{CREDENTIALS}/", 404 if gone else 200, GO, "10.42.5.13", server=None)
        asked(c, 7.0 + 20.0 * n, f"{CREDENTIALS}/", 200, BOTO, "10.42.5.20", server=None)

with Capture("no-role-ssm-restarts.pcap") as c:
    for n in range(20):
        granted(c, 1_800.0 * n, GO)
        asked(c, 1_800.0 * n + 0.01, f"{CREDENTIALS}/", 404, GO, with_token=token(n))

with Capture("no-role-cloudwatch-agent.pcap") as c:
    for n in range(40):
        granted(c, 60.0 * n, GO)
        asked(c, 60.0 * n + 0.01, f"{CREDENTIALS}/", 404, GO, with_token=token(n))
        asked(c, 60.0 * n + 0.02, "/latest/meta-data/instance-id", 200, GO, with_token=token(n))

with Capture("no-role-asked-once.pcap") as c:
    granted(c, 0.0, "aws-sdk-java/1.11.119")
    asked(c, 0.01, f"{CREDENTIALS}/", 404, "aws-sdk-java/1.11.119", with_token=token(0))

with Capture("role-detached-control.pcap") as c:
    for n in range(20):
        status = 200 if n < 5 else 404
        for at, client, agent in [(0.0, "10.0.1.10", BOTO), (3.0, "10.0.1.11", GO)]:
            asked(c, 30.0 * n + at, f"{CREDENTIALS}/", status, agent, client, with_token=token(0))
            asked(c, 30.0 * n + at + 0.1, "/latest/meta-data/instance-id", 200, agent, client, with_token=token(0))
            if status == 200:
                asked(c, 30.0 * n + at + 0.2, f"{CREDENTIALS}/app", 200, agent, client, with_token=token(0), length=1_310)

with Capture("macs-crash-loop.pcap") as c:
    # The container is restarted after 10, 20, 40 s and so on, at most 5 min. Each start causes one 404.
    time, pause = 0.0, 10.0
    for n in range(24):
        granted(c, time, GO)
        asked(c, time + 0.01, "/latest/meta-data/network/interfaces/macs/", 200, GO, with_token=token(n))
        asked(c, time + 0.02, "/latest/meta-data/network/interfaces/macs/02:79:46:f4:31:af/local-ipv4s", 404, GO, with_token=token(n))
        time, pause = time + pause, min(2 * pause, 300.0)

with Capture("macs-usual-404.pcap") as c:
    for n in range(40):
        for at, leaf, status in [(0.0, "device-number", 200), (0.1, "ipv6s", 404), (0.2, "network-card", 404), (0.3, "ipv4-prefix", 404), (0.4, "local-ipv4s", 200)]:
            asked(c, 60.0 * n + at, f"/latest/meta-data/network/interfaces/macs/02:41:3b:1e:3c:dd/{leaf}", status, GO, with_token=token(0))

with Capture("zone-crash-loop.pcap") as c:
    time, pause = 0.0, 10.0
    for n in range(20):
        asked(c, time, "/latest/meta-data/placement/availability-zone", 404, GO, server="Metadata Server for VM")
        time, pause = time + pause, min(2 * pause, 300.0)

# ---- 403 and its advice ----

with Capture("put-dated-path-403.pcap") as c:
    for n in range(4):
        refused(c, 30.0 * n, 403, "app/1.0", path="/2021-01-03/api/token")
        asked(c, 30.0 * n + 0.01, "/2021-01-03/meta-data/instance-id", 200, "app/1.0")

with Capture("role-slash-500.pcap") as c:
    for n in range(10):
        asked(c, 15.0 * n, f"{CREDENTIALS}/", 200, "Go-http-client/1.1", "10.42.1.7", server=None)
        asked(c, 15.0 * n + 0.01, f"{CREDENTIALS}/role_name/", 500, "Go-http-client/1.1", "10.42.1.7", server=None, length=48)

with Capture("one-path-403.pcap") as c:
    for n in range(10):
        asked(c, 30.0 * n, "/latest/meta-data/instance-id", 200, "app/1.0", server=None)
        asked(c, 30.0 * n + 0.01, "/latest/user-data", 403, "app/1.0", server=None)

with Capture("v1-403-required.pcap") as c:
    # Tokens are required, and this service rejects requests without one with 403. Another client gets 200 with a token.
    for n in range(6):
        asked(c, 30.0 * n, "/latest/meta-data/instance-id", 403, "old-agent/1.0")
        granted(c, 1.0 + 30.0 * n, BOTO, "10.0.1.20")
        asked(c, 1.1 + 30.0 * n, "/latest/meta-data/instance-id", 200, BOTO, "10.0.1.20", with_token=token(n))

# ---- Redirects and other statuses ----

with Capture("redirect-followed.pcap") as c:
    for n in range(6):
        there = [f"Location: http://169.254.169.254{CREDENTIALS}/"]
        asked(c, 900.0 * n, CREDENTIALS, 301, GO, length=0, headers=there)
        asked(c, 900.0 * n + 0.01, f"{CREDENTIALS}/", 200, GO)
        asked(c, 900.0 * n + 0.02, f"{CREDENTIALS}/app", 200, GO, length=1_310)

with Capture("redirect-to-portal.pcap") as c:
    for n in range(5):
        asked(c, 20.0 * n, "/latest/meta-data/instance-id", 302, "curl/7.88.1", server="portal", headers=["Location: https://login.example/"])

with Capture("redirect-https.pcap") as c:
    for n in range(4):
        granted(c, 30.0 * n, "aws-sdk-rust/0.13.0 api/imds/0.13.0", server="gateway")
        asked(c, 30.0 * n + 0.01, f"{CREDENTIALS}/", 308, "aws-sdk-rust/0.13.0 api/imds/0.13.0", server="gateway", with_token=token(n))

with Capture("get-406-stand-in.pcap") as c:
    for n in range(8):
        asked(c, 20.0 * n, "/latest/meta-data/instance-id", 406, "app/1.0", server="stand-in", with_token=token(0))

with Capture("get-410-version.pcap") as c:
    for n in range(40):
        asked(c, 20.0 * n, "/2009-04-04/meta-data/instance-id", 410, "app/1.0", server="stand-in")

# ---- Probes without a token ----

with Capture("head-options-root.pcap") as c:
    for n in range(20):
        asked(c, 15.0 * n, "/", 200, "scanner/1.0", method="HEAD")
        asked(c, 15.0 * n + 1, "/", 200, "scanner/1.0", method="OPTIONS")

with Capture("head-platform-probe.pcap") as c:
    asked(c, 0.0, "/", 200, "Ruby", server=None, method="HEAD")
    asked(c, 60.0, "/", 200, "Ruby", server=None, method="HEAD")

with Capture("get-root-probe.pcap") as c:
    for n in range(4):
        asked(c, 100.0 * n, "/", 200, "curl/8.5.0")

# ---- Rejected tokens ----

with Capture("fresh-tokens-401.pcap") as c:
    for n in range(8):
        granted(c, 20.0 * n, "app/1.0")
        asked(c, 20.0 * n + 0.01, "/latest/meta-data/instance-id", 401, "app/1.0", with_token=token(n))

with Capture("retry-after-401.pcap") as c:
    for n in range(8):
        asked(c, 1_800.0 * n, "/latest/meta-data/instance-id", 401 if n else 200, "AWS.jl/1.95", with_token=token(n))
        granted(c, 1_800.0 * n + 0.1, "AWS.jl/1.95", ttl=1_800)
        asked(c, 1_800.0 * n + 0.2, "/latest/meta-data/instance-id", 200, "AWS.jl/1.95", with_token=token(n + 1))

with Capture("token-times-out-in-crawl.pcap") as c:
    granted(c, 0.0, "ansible-httpget", ttl=60)
    for n in range(40):
        asked(c, 2.0 * n, f"/latest/meta-data/item-{n}", 200 if n < 30 else 401, "ansible-httpget", with_token=token(0))

with Capture("termination-handler-401.pcap") as c:
    for n in range(60):
        asked(c, 2.0 * n, "/latest/meta-data/spot/instance-action", 401, "aws-node-termination-handler/1.7.0", with_token=token(0))
