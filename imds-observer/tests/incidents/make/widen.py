"""Writes inputs on clients and platforms that the other tables lack: Karpenter, GitLab, Spark, agents, laptops, policies."""

from records import CREDENTIALS, Caller, Records

ROLE = CREDENTIALS + "node-role"
BOTO = "Botocore/1.34.0 Python/3.12"
GO = "aws-sdk-go-v2/1.30 api/imds#1.16 ec2imds"
HEALTHY = Caller(900, "/usr/bin/amazon-ssm-agent", unit="amazon-ssm-agent.service")


def healthy(r, until, every=30):
    """An agent on the host that asks now and then and is answered."""
    r.token(1, HEALTHY, agent=GO)
    for n in range(int(until / every)):
        r.exchange(1.01 + n * every, HEALTHY, "/latest/meta-data/instance-id", agent=GO)


with Records("widen-karpenter-bottlerocket-curl.ndjson") as r:
    healthy(r, 90)
    for n in range(4):
        pod = Caller(5_001 + n, "/usr/bin/curl", pod="default/shell-0", arguments=("-X", "PUT"), netns=4026537001)
        r.lost_token(5 + n * 20, pod, waited=15, agent="curl/8.5.0")

with Records("widen-termination-handler-one-503.ndjson") as r:
    handler = Caller(1_200, "/node-termination-handler", pod="kube-system/aws-node-termination-handler-x7k2p", netns=4026531840)
    r.token(1, handler, agent=GO)
    for n in range(150):
        r.exchange(2 + 2 * n, handler, "/latest/meta-data/spot/instance-action", status=503 if n == 70 else 404, agent=GO)
        r.exchange(2.01 + 2 * n, handler, "/latest/meta-data/events/maintenance/scheduled", agent=GO)

with Records("widen-forward-drop-eni.ndjson") as r:
    healthy(r, 120)
    handler = Caller(1_201, "/node-termination-handler", pod="kube-system/aws-node-termination-handler-b9q4c")
    for n in range(4):
        r.connect(3 + 31 * n, handler, "timeout", errno=110, elapsed=30, syns=5, dropped="NETFILTER_DROP@nft_do_chain")

with Records("widen-calico-egress-policy.ndjson") as r:
    worker = Caller(2_201, "/usr/local/bin/node", pod="jobs/worker-5d9c7-kk2lp")
    other = Caller(2_301, "/usr/local/bin/python3.12", pod="web/api-77c4-zz8qx")
    for n in range(5):
        r.connect(3 + 12 * n, worker, "timeout", errno=110, elapsed=4, syns=3, dropped="NETFILTER_DROP@nft_do_chain")
        r.token(4 + 12 * n, other, ttl=63, response_ttl=2, agent=BOTO)
        r.exchange(4.1 + 12 * n, other, CREDENTIALS, ttl=63, agent=BOTO)

with Records("widen-network-policy-agent-deny.ndjson") as r:
    healthy(r, 60)
    pod = Caller(2_401, "/app/server", pod="shop/checkout-6f7d-q2w3e")
    for n in range(4):
        r.connect(3 + 12 * n, pod, "timeout", errno=110, elapsed=8, syns=4, dropped="TC_INGRESS@sch_handle_ingress")

with Records("widen-ecs-block-imds.ndjson") as r:
    healthy(r, 60)
    task = Caller(2_501, "/usr/bin/python3.11", container="worker")
    for n in range(4):
        r.connect(3 + 10 * n, task, "error", errno=22, elapsed=0.0001, syns=0)

with Records("widen-docker-user-reject.ndjson") as r:
    healthy(r, 60)
    via = Caller(2_601, "/usr/sbin/nginx", container="via")
    for n in range(4):
        r.connect(3 + 10 * n, via, "refused", errno=111, elapsed=0.0006, syns=1, icmp="3/3", dropped="NETFILTER_DROP@nft_do_chain")

with Records("widen-laptop-pulumi.ndjson", host="laptop", interfaces=("wlp0s20f3",)) as r:
    pulumi = Caller(3_001, "/usr/bin/pulumi-resource-aws", unit="user@1000.service")
    for n in range(5):
        r.connect(3 + 4 * n, pulumi, "timeout", errno=None, elapsed=3.5, syns=3, wire_syns=3)

with Records("widen-spark-executors-throttled.ndjson.gz") as r:
    executors = [Caller(4_001 + n, "/usr/lib/jvm/java-17/bin/java", unit="hadoop-yarn-nodemanager.service", arguments=("org.apache.spark.executor.CoarseGrainedExecutorBackend", str(n))) for n in range(12)]
    for n in range(900):
        executor, at = executors[n % 12], 2 + n * 0.1
        throttled = n % 30 == 17
        r.token(at, executor, status=503 if throttled else 200, agent="aws-sdk-java/2.25.0")
        if not throttled:
            r.exchange(at + 0.01, executor, CREDENTIALS, agent="aws-sdk-java/2.25.0", token=f"made-up-{n}")
            r.exchange(at + 0.02, executor, ROLE, agent="aws-sdk-java/2.25.0", token=f"made-up-{n}")

with Records("widen-rust-in-docker.ndjson") as r:
    app = Caller(2_701, "/app/target/release/uploader", container="uploader")
    for n in range(3):
        r.lost_token(3 + 2 * n, app, agent="aws-sdk-rust/1.0 api/imds/1.0", waited=1)

with Records("widen-bridge-mode-python.ndjson") as r:
    app = Caller(2_801, "/usr/local/bin/python3.9", container="app")
    for n in range(3):
        r.lost_token(3 + 20 * n, app, agent="python-requests/2.28", waited=5)
        curl = Caller(2_850 + n, "/usr/bin/curl", container="app", arguments=("http://169.254.169.254/latest/meta-data/",), netns=app.netns)
        r.exchange(10 + 20 * n, curl, "/latest/meta-data/", version="v1", ttl=63, agent="curl/7.74.0")

with Records("widen-datadog-pod-probes.ndjson") as r:
    agent = Caller(2_901, "/opt/datadog-agent/bin/agent/agent", pod="datadog/datadog-agent-4w9zt")
    for n in range(8):
        r.lost_token(3 + 15 * n, agent, waited=0.3, agent="Go-http-client/1.1")
        r.exchange(3.4 + 15 * n, agent, "/computeMetadata/v1/?recursive=true", status=401, version="other", ttl=63, agent="Go-http-client/1.1")

with Records("widen-fluent-bit-tokens-required.ndjson") as r:
    healthy(r, 120)
    fluent = Caller(1_500, "/opt/td-agent/bin/ruby", unit="td-agent.service")
    for n in range(12):
        r.exchange(3 + 10 * n, fluent, CREDENTIALS, status=401, version="v1", agent=None)

with Records("widen-termination-handler-v1-after-timeout.ndjson") as r:
    handler = Caller(1_202, "/node-termination-handler", pod="kube-system/aws-node-termination-handler-h5j8m")
    for n in range(8):
        r.lost_token(3 + 4 * n, handler, waited=2, agent="Go-http-client/1.1")
        r.exchange(5.01 + 4 * n, handler, "/latest/meta-data/instance-id", version="v1", ttl=63, agent="Go-http-client/1.1")

with Records("widen-spot-termination-404.ndjson.gz") as r:
    handler = Caller(1_203, "/usr/bin/spot-handler", pod="kube-system/spot-handler-8s7d6")
    r.token(1, handler, ttl=63, response_ttl=2)
    for n in range(720):
        r.exchange(2 + 5 * n, handler, "/latest/meta-data/spot/termination-time", status=404, ttl=63)

with Records("widen-role-late-at-boot.ndjson") as r:
    script = Caller(700, "/usr/bin/python3.9", unit="cloud-final.service")
    for n in range(6):
        r.token(2 + n, script, agent=BOTO)
        r.exchange(2.01 + n, script, CREDENTIALS, status=404 if n < 4 else 200, agent=BOTO)
    r.exchange(7.02, script, ROLE, agent=BOTO)
    r.exchange(40, HEALTHY, "/latest/meta-data/instance-id", agent=GO)

with Records("widen-terraform-no-role.ndjson") as r:
    healthy(r, 60)
    terraform = Caller(3_301, "/usr/local/bin/terraform-provider-aws", unit="user@1000.service")
    r.token(5, terraform, agent=GO)
    for n in range(3):
        r.exchange(5.1 + n * 0.5, terraform, CREDENTIALS, status=404, agent=GO)

with Records("widen-gitlab-job-without-token.ndjson") as r:
    healthy(r, 120)
    for n in range(6):
        job = Caller(3_401 + n, "/usr/bin/curl", container="runner-job", arguments=("http://169.254.169.254/latest/meta-data/ami-id",), netns=4026538001)
        r.exchange(5 + 9 * n, job, "/latest/meta-data/ami-id", status=401, version="v1", ttl=63, agent="curl/7.81.0")

with Records("widen-github-runner-container.ndjson") as r:
    healthy(r, 120)
    aws = Caller(3_501, "/usr/local/bin/aws", container="actions-aws-cli")
    for n in range(4):
        r.lost_token(5 + 20 * n, aws, agent="aws-cli/2.15 Botocore/2.4", waited=1)
        r.exchange(6.01 + 20 * n, aws, CREDENTIALS, status=401, version="v1", ttl=63, agent="aws-cli/2.15 Botocore/2.4")
