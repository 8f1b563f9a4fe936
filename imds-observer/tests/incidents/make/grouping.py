"""Writes the inputs in which many subjects have one cause."""

from records import CREDENTIALS, Caller, Records

AGENTS = ["Botocore/1.34.0 Python/3.12", "aws-sdk-go-v2/1.30 api/imds#1.16 ec2imds", "aws-sdk-java/2.25.0"]

with Records("groups-forty-pods-one-hop-limit.ndjson.gz") as r:
    for number in range(40):
        pod = Caller(5_000 + number, "/usr/bin/python3.12", pod=f"team-{number % 8}/api-{number:02}")
        for attempt in range(3):
            r.lost_token(2 + number * 0.1 + attempt * 30, pod, agent=AGENTS[number % 3])

with Records("groups-endpoint-disabled.ndjson.gz") as r:
    for number in range(12):
        pod = Caller(6_000 + number, "/usr/bin/python3.12", pod=f"team-{number % 4}/job-{number:02}")
        for attempt in range(4):
            at = 2 + number * 0.2 + attempt * 20
            r.token(at, pod, status=403, ttl=63)
            r.exchange(at + 0.01, pod, CREDENTIALS, status=403, version="v1", ttl=63)
