"""Inputs of roles.toml: when a role was replaced, and what its clients and others asked for in between.

Facts: awslabs/aws-sdk-rust and aws-sdk-kotlin kept a role's name for the life of a provider, and ask for credentials again shortly before
they expire (6 h), so that hours lie between the last 200 and the first 404. The list of roles is the role's name, without a newline: its
length changes with the name's.

Run it in this directory: `python3 roles.py`.
"""

from capture import Capture

ROLES = "/latest/meta-data/iam/security-credentials/"
TOKEN = "AQAEmade-up-token-0000000000000000000000000000000000000=="


def ask(c, time, client, agent, path, status, length):
    """A token and a request with it."""
    c.connect(time, client).token(agent=agent).response(200, 56, ttl=1).close()
    c.connect(time + 0.1, client).get(path, TOKEN, agent=agent).response(status, length).close()


KOTLIN, BOTO, S3FS, GO = "aws-sdk-kotlin/0.9.5", "Boto3/1.34.0", "s3fs/1.91", "aws-sdk-go/1.44.0"

with Capture("role-replaced-before-the-first-404.pcap") as c:
    for time in (0, 21_000):
        ask(c, time, "10.0.8.3", KOTLIN, ROLES + "orders-2023", 200, 1_298)
    # The role is replaced. Another program starts and gets the new role's credentials, hours before the first program needs new
    # credentials.
    ask(c, 25_000, "10.0.8.3", BOTO, ROLES, 200, 9)
    ask(c, 25_001, "10.0.8.3", BOTO, ROLES + "orders-v2", 200, 1_298)
    for n in range(5):
        ask(c, 42_000 + 3 * n, "10.0.8.3", KOTLIN, ROLES + "orders-2023", 404, 339)

with Capture("role-replaced-own-listing-before.pcap") as c:
    # The client lists the roles to check whether there is one, but uses a name from its configuration.
    for time, listed in ((0, 10), (3_000, 10), (6_000, 15)):
        ask(c, time, "10.0.8.4", S3FS, ROLES, 200, listed)
        for n in range(1 if listed == 10 else 4):
            ask(c, time + 1 + n, "10.0.8.4", S3FS, ROLES + "media-read", 200 if listed == 10 else 404, 1_298 if listed == 10 else 339)

with Capture("role-replaced-listed-by-an-agent.pcap") as c:
    # An agent requests only the list, every 10 min. Both names have the same length.
    for n in range(12):
        ask(c, 600 * n, "10.0.8.5", GO, ROLES, 200, 8)
    for time in (30, 3_000):
        ask(c, time, "10.0.8.6", KOTLIN, ROLES + "web-blue", 200, 1_298)
    for n in range(4):
        ask(c, 6_605 + 4 * n, "10.0.8.6", KOTLIN, ROLES + "web-blue", 404, 339)

with Capture("role-detached-or-replaced-unknown.pcap") as c:
    # The list was read only once, soon after the last credentials, so it may have contained the old role.
    for time in (0, 3_000):
        ask(c, time, "10.0.8.7", KOTLIN, ROLES + "web-blue", 200, 1_298)
    ask(c, 3_060, "10.0.8.7", GO, ROLES, 200, 8)
    for n in range(14):
        ask(c, 6_600 + 30 * n, "10.0.8.7", KOTLIN, ROLES + "web-blue", 404, 339)
        ask(c, 6_610 + 30 * n, "10.0.8.7", GO, "/latest/meta-data/instance-id", 200, 19)

with Capture("role-detached-after-it-was-replaced.pcap") as c:
    # The role is replaced and later detached. Since then, the list of roles returns 404.
    ask(c, 0, "10.0.8.8", KOTLIN, ROLES + "web-blue", 200, 1_298)
    ask(c, 600, "10.0.8.8", BOTO, ROLES + "web-green", 200, 1_298)
    for n in range(14):
        ask(c, 3_000 + 30 * n, "10.0.8.8", BOTO, ROLES, 404, 339)
        ask(c, 3_010 + 30 * n, "10.0.8.8", KOTLIN, ROLES + "web-blue", 404, 339)

# Responses that are too short for credentials, for less than a minute.

with Capture("role-propagates-over-twelve-seconds.pcap") as c:
    for n in range(9):
        ask(c, 1.5 * n, "10.0.8.9", GO, ROLES + "fresh", 200, 281 if n < 8 else 1_298)

with Capture("stand-in-short-credentials-for-20-s.pcap") as c:
    for n in range(6):
        c.connect(4 * n, "10.0.8.10").get(ROLES + "testing", agent=BOTO).response(200, 281, server="BaseHTTP/0.6 Python/3.11.2").close()
