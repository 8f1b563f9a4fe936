//! The EKS Pod Identity Agent, from its source: aws/eks-pod-identity-agent at d4dc0f3. Any path but the one for credentials is 404, and the
//! agent's own probe asks `/` and expects that.

use super::table::{Protocol, Refusal};
use crate::record::Dialect;

/// Path of the pod's credentials.
const CREDENTIALS: &str = "/v1/credentials";

pub(super) const PROTOCOL: Protocol = Protocol {
    dialect: Dialect::EksPodIdentity,
    service: "the EKS Pod Identity Agent",
    credentials: &[CREDENTIALS],
    absent: &["/"],
    refusals: &[
        Refusal {
            statuses: &[404],
            paths: &[CREDENTIALS],
            cause: "no-association",
            means: "fail with 404: the pod's service account has no Pod Identity association, or the agent runs with the name of another cluster",
            remedy: "Create an association between the pod's namespace and service account and a role, or correct the existing one. It applies to pods that start afterwards.",
            commands: &[
                "aws eks list-pod-identity-associations --cluster-name CLUSTER --namespace NAMESPACE --service-account SERVICE_ACCOUNT",
                "aws eks create-pod-identity-association --cluster-name CLUSTER --namespace NAMESPACE --service-account SERVICE_ACCOUNT --role-arn ROLE_ARN",
            ],
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[400],
            paths: &[CREDENTIALS],
            cause: "bad-token",
            means: "fail with 400: the service account token is missing, malformed or expired, or EKS Auth does not accept it for this role",
            remedy: "Read the token from AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE for each request and send it as Authorization, without \"Bearer\": a copy taken at start-up expires. If the token is current, check that the role's trust policy allows pods.eks.amazonaws.com to call sts:AssumeRole and sts:TagSession; the agent's log has the error.",
            commands: &["kubectl -n kube-system logs -l app.kubernetes.io/name=eks-pod-identity-agent --tail=50"],
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[403],
            cause: "wrong-host",
            means: "fail with 403: their Host header is not one of the agent's two addresses",
            remedy: "Call the agent by its address, as AWS_CONTAINER_CREDENTIALS_FULL_URI has it, not by a name or through a port forward. If a proxy rewrites Host, exclude the address from the proxy.",
            commands: &["export NO_PROXY=\"$NO_PROXY,169.254.170.23,[fd00:ec2::23]\""],
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[429],
            cause: "throttled",
            means: "fail with 429: EKS Auth throttles, or the agent's own limit of 1000 requests per second is exceeded",
            remedy: "Cache credentials until shortly before they expire (create one SDK session per process), and retry with exponential backoff and jitter.",
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[500, 502, 503, 504],
            cause: "agent",
            means: "fail with a server error of the agent or of EKS Auth",
            remedy: "Check the agent's log on this node, and whether the node reaches the EKS Auth endpoint (eks-auth.REGION.api.aws; a private cluster needs a VPC endpoint for it).",
            commands: &["kubectl -n kube-system logs -l app.kubernetes.io/name=eks-pod-identity-agent --tail=50"],
            ..Refusal::NONE
        },
    ],
    documentation: "https://docs.aws.amazon.com/eks/latest/userguide/pod-identities.html",
    ..Protocol::NONE
};
