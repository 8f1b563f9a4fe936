#!/usr/bin/env python3
"""Checks the Kubernetes manifests and the Helm chart without a cluster, and prints what the pods will run as JSON.

The chart is linted and rendered by Helm itself; everything is held against Kubernetes' own schemas, strictly, of the oldest and the
newest version that the validator knows; and the plain manifests must be what the chart renders by default.
"""
import copy
import json
import pathlib
import sys

import helm_python as helm
import kubernetes_validate as kubernetes
import yaml

HERE = pathlib.Path(__file__).resolve().parent
CHART = HERE / "helm/imds-observer"
PLAIN = HERE / "kubernetes"
NAME = "imds-observer"
# The chart's own lower bound, and what is newest.
VERSIONS = ["1.25", kubernetes.latest_version()]
# Kinds of the Prometheus operator: Kubernetes has no schema for them.
FOREIGN = {"PodMonitor", "PrometheusRule"}
# What only Helm needs.
HELMS_LABELS = {"app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart"}

VARIANTS = {
    "everything": {
        "image": {"repository": "registry.example/imds-observer", "digest": "sha256:" + "0" * 64, "pullSecrets": [{"name": "pull"}]},
        "extraArgs": ["--interval=30s"],
        "metrics": {"host": "[$(HOST_IP)]", "port": 19469},
        "otlp": {"endpoint": "http://collector.monitoring:4318"},
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "seLinuxOptions": {"user": "system_u", "role": "system_r", "type": "control_t", "level": "s0-s0:c0.c1023"},
        "seccompProfile": {"type": "Localhost", "localhostProfile": "imds-observer.json"},
        "priorityClass": {"name": "system-node-critical"},
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "platform"},
    },
    "bare": {"priorityClass": {"create": False}, "tolerations": [], "affinity": None, "nodeSelector": None, "config": ""},
    "k3s": {"containerRuntime": "k3s"},
    "crio": {"containerRuntime": "crio", "seccompProfile": {"type": "Unconfined"}},
    "docker": {"containerRuntime": "docker", "capabilities": ["BPF", "PERFMON", "NET_ADMIN", "SYS_PTRACE", "SYS_RESOURCE"]},
}
REFUSED = [
    {"metric": {"port": 1}},
    {"metrics": {"port": "http"}},
    {"containerRuntime": "rkt"},
    {"capabilities": ["ALL"]},
    {"otlp": {"endpoint": "collector:4318"}},
    {"image": {"digest": "sha256:1"}},
]


def fail(what):
    sys.exit(f"deploy/check.py: {what}")


def objects(text):
    return [each for each in yaml.safe_load_all(text) if each]


def rendered(values, name=NAME):
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name=name, namespace=NAME)
    return [each for path, text in files.items() if path.endswith(".yaml") for each in objects(text)]


def validate(what, manifest, versions):
    if manifest["kind"] in FOREIGN:
        return
    for version in versions:
        try:
            kubernetes.validate(manifest, version, strict=True)
        except kubernetes.ValidationError as error:
            fail(f"{what}, {manifest['kind']}: {error.message} (Kubernetes {version})")


def by_name(manifests):
    return {(each["kind"], each["metadata"]["name"]): each for each in manifests}


def without_helms(manifest):
    manifest = copy.deepcopy(manifest)
    labels = manifest["metadata"].get("labels", {})
    manifest["metadata"]["labels"] = {key: value for key, value in labels.items() if key not in HELMS_LABELS}
    if manifest["kind"] == "ConfigMap":
        manifest["data"] = {key: value.strip() for key, value in manifest["data"].items()}
    if manifest["kind"] == "DaemonSet":
        annotations = manifest["spec"]["template"]["metadata"].pop("annotations", {})
        annotations.pop("checksum/config", None)
        if annotations:
            fail(f"the chart annotates pods with {annotations}")
    return manifest


def check_chart():
    report = helm.lint(str(CHART), strict=True)
    if report["errors"] or any(message["severity"] > 1 for message in report["messages"]):
        fail(f"helm lint: {json.dumps(report)}")
    for name, values in VARIANTS.items():
        for manifest in rendered(values):
            validate(f"chart with {name}", manifest, VERSIONS)
    # Kubernetes has this key since 1.30.
    for manifest in rendered({"appArmorProfile": {"type": "Unconfined"}}):
        validate("chart with AppArmor", manifest, VERSIONS[-1:])
    for values in REFUSED:
        try:
            rendered(values)
        except helm.HelmError:
            continue
        fail(f"the chart takes {values}")
    everything = by_name(rendered(VARIANTS["everything"]))
    rules = yaml.safe_load((HERE / "prometheus/alerts.yml").read_text())
    if everything["PrometheusRule", NAME]["spec"] != rules:
        fail("the chart's PrometheusRule isn't deploy/prometheus/alerts.yml")
    args = everything["DaemonSet", NAME]["spec"]["template"]["spec"]["containers"][0]["args"]
    if "--otlp-endpoint=http://collector.monitoring:4318" not in args or "--metrics=[$(HOST_IP)]:19469" not in args:
        fail(f"values don't reach the program: {args}")
    if {key[1] for key in by_name(rendered({}, name="other"))} != {"other-imds-observer"}:
        fail("two releases in one cluster have the same names")


def check_plain():
    files = {file.name: objects(file.read_text()) for file in sorted(PLAIN.glob("*.yaml"))}
    listed = set(files.pop("kustomization.yaml")[0]["resources"])
    if listed != set(files) - {"podmonitor.yaml"}:
        fail(f"kustomization.yaml lists {sorted(listed)}")
    plain = by_name(manifest for manifests in files.values() for manifest in manifests)
    for manifest in plain.values():
        validate("deploy/kubernetes", manifest, VERSIONS)
    chart = by_name(rendered({"podMonitor": {"enabled": True}}))
    # Helm makes the namespace itself.
    if set(plain) - {("Namespace", NAME)} != set(chart):
        fail(f"deploy/kubernetes has {sorted(plain)}, the chart {sorted(chart)}")
    for key, manifest in chart.items():
        wanted, got = without_helms(manifest), without_helms(plain[key])
        if wanted != got:
            show = [json.dumps(each, indent=1, sort_keys=True).splitlines() for each in (got, wanted)]
            different = [f"  {a}  |  {b}" for a, b in zip(*show) if a != b][:5]
            fail(f"{key}: deploy/kubernetes differs from what the chart renders:\n" + "\n".join(different))
    return plain


def check_the_check(daemonset):
    """A check that finds nothing in a broken manifest would be none."""
    broken = copy.deepcopy(daemonset)
    broken["spec"]["template"]["spec"]["hostPid"] = True
    try:
        kubernetes.validate(broken, VERSIONS[-1], strict=True)
    except kubernetes.ValidationError:
        return
    fail("the validator takes a misspelt key")


check_chart()
plain = check_plain()
daemonset = plain["DaemonSet", NAME]
check_the_check(daemonset)
pod = daemonset["spec"]["template"]["spec"]
container = pod["containers"][0]
print(
    json.dumps(
        {
            "args": container["args"],
            "capabilities": container["securityContext"]["capabilities"]["add"],
            "config": plain["ConfigMap", NAME]["data"]["config.toml"],
            "image": container["image"],
            "mounts": {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]},
            "paths": {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume},
        }
    )
)
