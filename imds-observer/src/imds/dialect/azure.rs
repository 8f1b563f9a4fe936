//! Azure. <https://learn.microsoft.com/en-us/azure/virtual-machines/instance-metadata-service>, and for tokens
//! <https://learn.microsoft.com/en-us/entra/identity/managed-identities-azure-resources/how-to-use-vm-token>

use super::table::{Protocol, Refusal};
use crate::record::Dialect;

const IDENTITY: &[&str] = &["/metadata/identity/**"];

pub(super) const PROTOCOL: Protocol = Protocol {
    dialect: Dialect::Azure,
    service: "the Azure Instance Metadata Service",
    servers: &["IMDS/"],
    credentials: &["/metadata/identity/oauth2/token"],
    absent: &["/metadata/loadbalancer/**"],
    refusals: &[
        Refusal {
            statuses: &[410],
            cause: "updating",
            means: "fail with 410: the service is being updated",
            remedy: "Retry with backoff for at least 70 s: that is the longest time that an update takes.",
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[404],
            paths: IDENTITY,
            cause: "updating",
            means: "for a token fail with 404: the service is being updated",
            remedy: "Retry with exponential backoff.",
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[400],
            paths: IDENTITY,
            cause: "identity",
            means: "for a token fail with 400: a parameter is wrong, or the machine has no such managed identity",
            remedy: "Assign a managed identity to the machine, or correct client_id, object_id or msi_res_id. Send Metadata: true, api-version and resource. The response's body names the error.",
            commands: &["az vm identity show --resource-group GROUP --name VM"],
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[400],
            cause: "header",
            means: "fail with 400: Metadata: true or api-version is missing, or a proxy adds X-Forwarded-For",
            remedy: "Send the header Metadata: true and a supported api-version, and let the client reach the service without a proxy.",
            commands: &[
                "curl -sS --noproxy '*' -H 'Metadata: true' 'http://169.254.169.254/metadata/instance?api-version=2021-02-01'",
            ],
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[405],
            cause: "method",
            means: "fail with 405: the path does not support the method",
            remedy: "Use GET.",
            ..Refusal::NONE
        },
    ],
    overload: "Cache tokens until shortly before they expire, and retry with exponential backoff: after 5xx wait at least 1 s.",
    documentation: "https://learn.microsoft.com/en-us/azure/virtual-machines/instance-metadata-service",
    ..Protocol::NONE
};
