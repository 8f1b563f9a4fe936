//! Compute Engine's metadata server, and GKE's in front of it. <https://cloud.google.com/compute/docs/metadata/querying-metadata>

use super::table::{Protocol, Refusal};
use crate::record::Dialect;

const TOKENS: &[&str] = &[
    "/computeMetadata/*/instance/service-accounts/*/token",
    "/computeMetadata/*/instance/service-accounts/*/identity",
];

pub(super) const PROTOCOL: Protocol = Protocol {
    dialect: Dialect::Gcp,
    service: "the GCP metadata server",
    servers: &["Metadata Server for VM", "GKE Metadata Server"],
    credentials: TOKENS,
    absent: &[
        "/computeMetadata/*/instance/attributes/**",
        "/computeMetadata/*/project/attributes/**",
        "/computeMetadata/*/instance/guest-attributes/**",
    ],
    hanging: &["wait_for_change"],
    refusals: &[
        Refusal {
            statuses: &[403],
            forwarded: true,
            cause: "forwarded",
            means: "are refused with 403: they carry X-Forwarded-For",
            remedy: "Exclude metadata.google.internal and 169.254.169.254 from the proxy.",
            commands: &["export NO_PROXY=\"$NO_PROXY,metadata.google.internal,169.254.169.254\""],
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[403],
            paths: TOKENS,
            cause: "permission",
            means: "for a service account's token are refused with 403",
            remedy: "On GKE with Workload Identity Federation, grant the Kubernetes service account roles/iam.workloadIdentityUser on the IAM service account and check the annotation iam.gke.io/gcp-service-account. Elsewhere, check that the client sends Metadata-Flavor: Google. The response's body names the cause.",
            commands: &[
                "gcloud iam service-accounts get-iam-policy SERVICE_ACCOUNT",
                "curl -sS -H 'Metadata-Flavor: Google' http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/email",
            ],
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[403],
            cause: "header",
            means: "are refused with 403: the header Metadata-Flavor: Google is missing, or a proxy adds X-Forwarded-For",
            remedy: "Send Metadata-Flavor: Google with each request, and let the client reach the server without a proxy.",
            commands: &[
                "curl -sS -H 'Metadata-Flavor: Google' http://metadata.google.internal/computeMetadata/v1/instance/id",
            ],
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[404],
            paths: &["/computeMetadata/*/instance/service-accounts/**"],
            cause: "no-service-account",
            means: "for a service account fail with 404: the instance has no such service account",
            remedy: "Attach a service account to the instance (it must be stopped for that), or configure the client with other credentials.",
            commands: &["gcloud compute instances describe INSTANCE --format='value(serviceAccounts[].email)'"],
            ..Refusal::NONE
        },
    ],
    overload: "Retry with exponential backoff and jitter: the server returns 503 for some seconds around maintenance and at the start of a GKE node's metadata server.",
    documentation: "https://cloud.google.com/compute/docs/metadata/querying-metadata",
    ..Protocol::NONE
};
