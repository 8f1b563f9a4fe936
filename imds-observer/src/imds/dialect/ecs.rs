//! The ECS agent's endpoint for tasks, from its source: aws/amazon-ecs-agent at 8dfceca6c. The id in a path is itself the credential.

use super::table::{Protocol, Refusal};
use crate::record::Dialect;

const CREDENTIALS: &[&str] = &["/v1/credentials", "/v2/credentials/*", "/v2/credentials"];

pub(super) const PROTOCOL: Protocol = Protocol {
    dialect: Dialect::Ecs,
    service: "the ECS agent",
    credentials: CREDENTIALS,
    absent: &["/"],
    refusals: &[
        Refusal {
            statuses: &[400, 404],
            paths: CREDENTIALS,
            cause: "bad-token",
            means: "fail because the credentials id is missing or unknown to the ECS agent",
            remedy: "Take the path from AWS_CONTAINER_CREDENTIALS_RELATIVE_URI of the same task, and pass that variable on to child processes. An id copied from another task, or kept across a restart of the task, is unknown.",
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[401, 403],
            paths: CREDENTIALS,
            cause: "wrong-host",
            means: "are refused, which the ECS agent itself does not do: something else answers, or a proxy is between",
            remedy: "Exclude 169.254.170.2 from the proxy, and check what answers at that address.",
            commands: &["export NO_PROXY=\"$NO_PROXY,169.254.170.2\""],
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[429],
            cause: "throttled",
            means: "fail with 429: the ECS agent limits each task to 40 requests per second with bursts of 60",
            remedy: "Cache credentials and task metadata, and retry with exponential backoff and jitter. On EC2, ECS_TASK_METADATA_RPS_LIMIT in the agent's configuration sets rate and burst; Fargate has no such setting.",
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[503],
            paths: CREDENTIALS,
            cause: "not-ready",
            means: "fail with 503: the ECS agent knows the id, but has not received the credentials yet",
            remedy: "Retry for some seconds when a task starts. If it lasts, check that the task role exists and trusts ecs-tasks.amazonaws.com, and that the agent is connected to ECS.",
            commands: &["curl -s http://localhost:51678/v1/metadata"],
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[500, 502, 503, 504],
            cause: "agent",
            means: "fail with a server error of the ECS agent",
            remedy: "Check the agent's log on this instance.",
            commands: &["tail -n 50 /var/log/ecs/ecs-agent.log"],
            ..Refusal::NONE
        },
    ],
    documentation: "https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-iam-roles.html",
    ..Protocol::NONE
};
