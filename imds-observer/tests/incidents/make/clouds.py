"""Inputs of clouds.toml: the credential agents of EKS and ECS, and the metadata services of other clouds.

Facts: the Pod Identity Agent answers 400, 403, 404 and 429 as its source says (aws/eks-pod-identity-agent), the ECS agent 400, 429 and 503
(aws/amazon-ecs-agent). GCP's server names itself `Metadata Server for VM` or `GKE Metadata Server`, Azure's `IMDS/150...`. All ids, tokens and
keys are made up.

Run it in this directory: `python3 clouds.py`.
"""

from capture import Capture, IMDS
from records import Caller, Records

POD_IDENTITY, ECS, ALIBABA, SCALEWAY = "169.254.170.23", "169.254.170.2", "100.100.100.200", "169.254.42.42"
JWT = "Authorization: eyJmade.up00.jwt0"
TASK = "/v2/credentials/0f0f0f0f-1111-4222-8333-444455556666"
BOTO = "Boto3/1.40.0 md/Botocore#1.40.0"
GOOGLE = "Metadata-Flavor: Google"
DEFAULT_TOKEN = "/computeMetadata/v1/instance/service-accounts/default/token"
AZURE_TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net"
ROLES = "/latest/meta-data/iam/security-credentials/"


def ask(c, at, path, status, server=IMDS, headers=(), method="GET", name=None, length=60, after=0.0006, client="10.0.1.10", agent=BOTO, **options):
    connection = c.connect(at, client, server, **options).request(method, path, headers, agent=agent)
    connection.response(status, length=length, server=name, after=after).close()


def pod_identity(name, status, times, headers=(JWT,), **options):
    with Capture(name) as c:
        for at in times:
            ask(c, at, "/v1/credentials", status, POD_IDENTITY, headers, **options)


RETRIES = [start + second for start in (0, 60, 300) for second in (0, 1, 2)]

# ---- EKS Pod Identity ----
pod_identity("pod-identity-no-association.pcap", 404, RETRIES)
pod_identity("pod-identity-bad-jwt.pcap", 400, RETRIES)
pod_identity("pod-identity-host-network-denied.pcap", 400, [0, 30, 60, 90])
pod_identity("pod-identity-by-name.pcap", 403, RETRIES)
pod_identity("pod-identity-throttled.pcap", 429, [second / 4 for second in range(24)])
pod_identity("pod-identity-ipv6-no-association.pcap", 404, [0, 1, 2])
pod_identity("pod-identity-eks-auth-down.pcap", 500, RETRIES, after=1.1)
pod_identity("pod-identity-proxy-403.pcap", 403, RETRIES, headers=(JWT, "X-Forwarded-For: 10.0.2.7", "Via: 1.1 squid"))

with Capture("pod-identity-healthy.pcap") as c:
    # The agent's probe, and pods that refresh credentials. A cache miss of the agent takes 200 ms, a rare one 800 ms.
    for n in range(60):
        ask(c, n * 10, "/", 404, POD_IDENTITY, client="10.0.1.5", agent="Go-http-client/1.1")
    for n in range(40):
        ask(c, 3 + n * 15, "/v1/credentials", 200, POD_IDENTITY, (JWT,), length=1200, after=0.0004 if n % 3 else (0.8 if n == 21 else 0.2),
            client=f"10.0.1.{10 + n % 8}")

with Capture("pod-identity-one-404-before-the-association.pcap") as c:
    ask(c, 0, "/v1/credentials", 404, POD_IDENTITY, (JWT,))
    for n in range(6):
        ask(c, 20 + n * 3000, "/v1/credentials", 200, POD_IDENTITY, (JWT,), length=1200, after=0.18)

with Capture("pod-identity-agent-silent.pcap") as c:
    # A node that was just launched: the agent accepts connections, but can't reach EKS Auth yet.
    for n in range(6):
        connection = c.connect(n * 2.2, server=POD_IDENTITY).request("GET", "/v1/credentials", (JWT,), agent="Go-http-client/1.1")
        connection.time += 2.0
        connection.close()

pod = Caller(4242, "/usr/bin/python3.11", pod="payments/api-7c9d5f-x2x2x")
with Records("pod-identity-agent-down.ndjson") as r:
    for n, at in enumerate(RETRIES):
        r.connect(at, pod, "refused", errno=111, endpoint=f"{POD_IDENTITY}:80")
with Records("pod-identity-cilium-policy.ndjson") as r:
    for at in [0, 3.1, 6.2, 60, 63.1, 66.2]:
        r.connect(at, pod, "timeout", elapsed=2.0, syns=2, endpoint=f"{POD_IDENTITY}:80")
with Records("pod-identity-iptables-drop.ndjson") as r:
    for at in [0, 3.1, 6.2]:
        r.connect(at, pod, "timeout", elapsed=2.0, syns=2, dropped="NETFILTER_DROP@nft_do_chain", endpoint=f"{POD_IDENTITY}:80")
with Records("pod-identity-agents-own-probe.ndjson") as r:
    agent = Caller(900, "/eks-pod-identity-agent", pod="kube-system/eks-pod-identity-agent-abcde")
    for n in range(400):
        r.exchange(n * 5, agent, "/", status=404, version="other", server=None, endpoint=f"{POD_IDENTITY}:80")
        if n % 100 == 0:
            r.connect(n * 5 + 1, agent, "refused", errno=111, endpoint=f"{POD_IDENTITY}:80")

# ---- ECS ----
with Capture("ecs-id-unknown.pcap") as c:
    for at in RETRIES:
        ask(c, at, TASK, 400, ECS)
with Capture("ecs-throttled.pcap") as c:
    for n in range(400):
        ask(c, n * 0.01, TASK, 200 if n < 60 or n % 3 else 429, ECS, length=1100, agent="aws-sdk-ruby3/3.241.4")
    for n in range(40):
        ask(c, 5 + n * 0.02, TASK, 429, ECS, agent="aws-sdk-ruby3/3.241.4")
with Capture("ecs-not-ready.pcap") as c:
    for n in range(20):
        ask(c, n * 3, TASK, 503, ECS)
with Capture("ecs-not-ready-at-start.pcap") as c:
    for n in range(3):
        ask(c, n, TASK, 503, ECS)
    for n in range(4):
        ask(c, 4 + n * 1800, TASK, 200, ECS, length=1100)
with Capture("ecs-healthy.pcap") as c:
    for n in range(200):
        ask(c, n * 9, "/v4/0f0f0f0f-1111-4222-8333-444455556666/task", 200, ECS, length=2400, after=0.002, agent="amazon-cloudwatch-agent")
    for n in range(10):
        ask(c, n * 180, TASK, 200, ECS, length=1100)
with Capture("ecs-agent-silent.pcap") as c:
    for at in RETRIES:
        connection = c.connect(at * 3, server=ECS).request("GET", TASK, agent=BOTO)
        connection.time += 2.0
        connection.close()
with Records("ecs-agent-down.ndjson") as r:
    task = Caller(5151, "/usr/bin/ruby3.2", container="web")
    for at in RETRIES:
        r.connect(at, task, "refused", errno=111, endpoint=f"{ECS}:80")

# ---- OpenStack and Huawei ----
with Capture("openstack-botocore.pcap") as c:
    ask(c, 0, "/openstack/latest/meta_data.json", 200, length=1500, agent="Cloud-Init/24.1")
    for n in range(120):
        at = 10 + n * 60
        ask(c, at, "/latest/api/token", 405 if n % 2 else 404, method="PUT", headers=["x-aws-ec2-metadata-token-ttl-seconds: 21600"])
        ask(c, at + 0.01, ROLES, 404)
        ask(c, at + 0.02, "/latest/meta-data/instance-id", 200, length=10)
with Capture("openstack-rate-limited.pcap") as c:
    for n in range(60):
        ask(c, n * 0.3, "/openstack/latest/meta_data.json", 200 if n < 10 else 429, agent="python-requests/2.31")
with Capture("openstack-nova-500.pcap") as c:
    for n in range(40):
        ask(c, n * 2, "/openstack/2018-08-27/meta_data.json", 500, agent="Cloud-Init/24.1")
with Capture("huawei-token-and-agency.pcap") as c:
    for n in range(5):
        at = n * 3600
        ask(c, at, "/meta-data/latest/api/token", 200, method="PUT", headers=["X-Metadata-Token-Ttl-Seconds: 21600"], agent="huaweicloud-usdk-python/3.0")
        ask(c, at + 0.01, "/openstack/latest/securitykey", 200, headers=["X-Metadata-Token: made-up-token-1"], length=900, agent="huaweicloud-usdk-python/3.0")
with Capture("huawei-no-agency.pcap") as c:
    for n in range(20):
        ask(c, n * 30, "/openstack/latest/securitykey", 404, agent="huaweicloud-usdk-python/3.0")

# ---- GCP ----
GCE = "Metadata Server for VM"
with Capture("gcp-missing-flavor.pcap") as c:
    for n in range(12):
        ask(c, n * 5, "/computeMetadata/v1/instance/name", 403, name=GCE, agent="curl/7.87.0")
with Capture("gke-root-403.pcap") as c:
    for n in range(12):
        ask(c, n * 5, "/", 403, name="GKE Metadata Server", agent="gcloud-ruby/1.3")
        ask(c, n * 5 + 1, "/computeMetadata/v1/project/project-id", 200, headers=[GOOGLE], name="GKE Metadata Server", agent="gcloud-ruby/1.3",
            client="10.0.1.11")
with Capture("gke-workload-identity-403.pcap") as c:
    for n in range(12):
        ask(c, n * 5, DEFAULT_TOKEN, 403, headers=[GOOGLE], name="GKE Metadata Server", agent="google-api-go-client/0.5")
with Capture("gke-token-500.pcap") as c:
    for n in range(15):
        ask(c, n * 2, DEFAULT_TOKEN, 500, headers=[GOOGLE], name="GKE Metadata Server", agent="Google-HTTP-Java-Client/1.30.2")
with Capture("gcp-hanging-get.pcap") as c:
    # The guest agent: each response is sent after 60 s, or when something changes.
    connection = c.connect(0)
    for n in range(20):
        connection.request("GET", "/computeMetadata/v1/?timeout_sec=60&last_etag=NONE&alt=json&recursive=True&wait_for_change=true", [GOOGLE],
                           agent="google_guest_agent/20240314", at=connection.time + 0.01)
        connection.response(200, length=5000, server=GCE, after=60.0 if n % 4 else 2.0)
    connection.close()
with Capture("gcp-attributes-404.pcap") as c:
    for n in range(200):
        ask(c, n * 10, "/computeMetadata/v1/instance/attributes/cluster-autoscaler", 404, headers=[GOOGLE], name=GCE, agent="agent/1")
with Capture("gcp-aws-sdk-probes.pcap") as c:
    for n in range(60):
        ask(c, n * 60, DEFAULT_TOKEN, 200, headers=[GOOGLE], name=GCE, length=1100, agent="gcp-sdk")
        ask(c, n * 60 + 1, "/latest/api/token", 404, method="PUT", headers=["x-aws-ec2-metadata-token-ttl-seconds: 21600"], name=GCE)
        ask(c, n * 60 + 1.1, ROLES, 404, name=GCE)

# ---- Azure ----
MICROSOFT = "IMDS/150.870.65.476"
META = "Metadata: true"
with Capture("azure-identity-not-found.pcap") as c:
    for n in range(10):
        ask(c, n * 20, AZURE_TOKEN, 400, headers=[META], name=MICROSOFT, agent="azsdk-js-identity/4")
with Capture("azure-gone.pcap") as c:
    for n in range(12):
        ask(c, n * 5, AZURE_TOKEN, 410, headers=[META], name=MICROSOFT, agent="azsdk-net-Identity/1.6")
    for n in range(30):
        ask(c, 70 + n * 60, AZURE_TOKEN, 200, headers=[META], name=MICROSOFT, length=1700, agent="azsdk-net-Identity/1.6")
with Capture("azure-missing-header.pcap") as c:
    for n in range(12):
        ask(c, n * 5, "/metadata/instance?api-version=2021-02-01", 400, name=MICROSOFT, agent="curl/8")
with Capture("azure-throttled.pcap") as c:
    for n in range(100):
        ask(c, n * 0.1, AZURE_TOKEN, 200 if n < 40 else 429, headers=[META], name=MICROSOFT, agent="azsdk-go-azidentity")
with Capture("azure-ohai-api-version.pcap") as c:
    # A client that requests an invalid version on purpose: the 400 response lists the versions.
    ask(c, 0, "/metadata/instance?api-version=1901-01-01", 400, headers=[META], name=MICROSOFT, agent="ohai")
    ask(c, 1, "/metadata/instance?api-version=2021-02-01", 200, headers=[META], name=MICROSOFT, agent="ohai")

# ---- Oracle ----
BEARER = "Authorization: Bearer Oracle"
with Capture("oracle-v1-disabled.pcap") as c:
    for n in range(20):
        ask(c, n * 30, "/opc/v1/instance/", 404, agent="cloudbase-init")
with Capture("oracle-v2-without-header.pcap") as c:
    for n in range(12):
        ask(c, n * 5, "/opc/v2/instance/", 403, agent="newrelic-infra")
with Capture("oracle-healthy.pcap") as c:
    for n in range(40):
        ask(c, n * 30, "/opc/v2/instance/", 200, headers=[BEARER], length=2000, agent="oci-python-sdk")
        if n % 4 == 0:
            ask(c, n * 30 + 1, "/opc/v2/identity/cert.pem", 200, headers=[BEARER], length=2000, agent="oci-python-sdk")

# ---- Alibaba ----
with Capture("alibaba-hardened-no-token.pcap") as c:
    for n in range(12):
        ask(c, n * 10, "/latest/meta-data/ram/security-credentials/", 403, ALIBABA, agent="ossfs")
with Capture("alibaba-token-405.pcap") as c:
    for n in range(6):
        ask(c, n * 10, "/latest/api/token", 405, ALIBABA, method="GET", headers=["X-aliyun-ecs-metadata-token-ttl-seconds: 21600"],
            agent="AlibabaCloud-Credentials-Node")
with Capture("alibaba-healthy.pcap") as c:
    for n in range(6):
        ask(c, n * 1800, "/latest/api/token", 200, ALIBABA, method="PUT", headers=["X-aliyun-ecs-metadata-token-ttl-seconds: 21600"])
        for m in range(4):
            ask(c, n * 1800 + m, "/latest/meta-data/ram/security-credentials/web", 200, ALIBABA, length=900,
                headers=["X-aliyun-ecs-metadata-token: made-up-token-2"])

# ---- Others ----
with Capture("linode-token-missing.pcap") as c:
    ask(c, 0, "/v1/token", 200, method="PUT", headers=["Metadata-Token-Expiry-Seconds: 60"])
    for n in range(8):
        ask(c, 100 + n * 10, "/v1/instance", 401, headers=["Metadata-Token: made-up-token-3"])
with Capture("mmds-healthy.pcap") as c:
    for n in range(6):
        ask(c, n * 600, "/latest/api/token", 200, method="PUT", headers=["X-metadata-token-ttl-seconds: 21600"], name="Firecracker API")
        for m in range(10):
            ask(c, n * 600 + m, "/latest/meta-data/ami-id", 200, headers=["X-metadata-token: made-up-token-4"], name="Firecracker API")
with Capture("ibm-healthy.pcap") as c:
    for n in range(6):
        ask(c, n * 300, "/instance_identity/v1/token?version=2022-03-29", 200, method="PUT", headers=["Metadata-Flavor: ibm"], length=900)
        ask(c, n * 300 + 1, "/metadata/v1/instance?version=2022-03-29", 200, headers=["Authorization: Bearer made-up-token-5"], length=900)
with Capture("scaleway-high-port.pcap") as c:
    for n in range(10):
        ask(c, n * 10, "/user_data/cloud-init", 403, SCALEWAY, agent="curl/8")
with Capture("hetzner-healthy.pcap") as c:
    for n in range(20):
        ask(c, n * 60, "/hetzner/v1/metadata/instance-id", 200, agent="hcloud")
        ask(c, n * 60 + 1, "/hetzner/v1/userdata", 404, agent="hcloud")
with Capture("digitalocean-healthy.pcap") as c:
    for n in range(20):
        ask(c, n * 60, "/metadata/v1.json", 200, length=1500, agent="do-agent/3")
        ask(c, n * 60 + 1, "/metadata/v1/user-data", 404, agent="do-agent/3")
