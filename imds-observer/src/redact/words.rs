//! Words that are kept wherever they are: names of commands and values that programs share. None of them is a password that protects anything.

/// Sorted, for binary search.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "access", "add", "agent", "all", "alt", "always", "api", "api-version", "app", "apply", "async", "audience", "auto", "aws", "azure",
    "backup", "bash", "batch", "blue", "boot", "build", "check", "classic", "client", "cloud", "cloud-init", "cluster", "compact",
    "config", "configure", "connect", "console", "container", "containers", "controller", "copy", "cp", "create", "credentials", "cron",
    "csv", "curl", "daemon", "data", "debug", "default", "delete", "deploy", "describe", "describe-instances", "describe-tags", "detect",
    "dev", "diff", "disable", "disabled", "down", "dry-run", "dual", "ec2", "ecr", "ecs", "edit", "eks", "enable", "enabled", "env",
    "error", "etag", "eval", "event", "exec", "export", "false", "fetch", "final", "follow", "forever", "format", "full", "gcp",
    "generate", "get", "get-caller-identity", "get-login", "get-login-password", "get-parameter", "get-secret-value", "get-token",
    "global", "grpc", "head", "health", "help", "host", "http", "https", "iam", "identity", "imds", "import", "index", "info", "ingest",
    "init", "inspect", "install", "instance", "ip", "ipv4", "ipv6", "job", "jobs", "json", "kube", "kubelet", "last", "launch",
    "lifecycle", "linux", "list", "listen", "load", "local", "localhost", "log", "login", "logs", "ls", "main", "manage", "manager",
    "master", "member", "metadata", "metrics", "migrate", "module", "modules", "monitor", "mount", "mv", "network", "never", "no", "node",
    "none", "null", "off", "on", "once", "option", "optional", "options", "output", "patch", "ping", "plain", "plan", "pod", "pods",
    "poll", "post", "prod", "production", "proxy", "ps", "public", "publish", "pull", "push", "put", "query", "queue", "quiet", "read",
    "receive", "recursive", "reload", "remote", "remove", "report", "required", "resource", "restart", "restore", "rm", "role", "run",
    "runserver", "s3", "s3api", "scan", "schedule", "scheduler", "search", "send", "serve", "server", "service", "services", "set",
    "setup", "shell", "show", "sqs", "ssm", "staging", "standalone", "start", "stats", "status", "stdin", "stdout", "stop", "stream",
    "strict", "sts", "sync", "system", "systemd", "tail", "task", "tcp", "test", "text", "timeout", "token", "trace", "true", "udp",
    "unix", "up", "update", "upgrade", "upload", "user", "v1", "v2", "validate", "verbose", "verify", "version", "view", "wait", "warn",
    "warning", "watch", "web", "worker", "workers", "write", "yaml", "yes",
];

/// Short values that HTTP clients use in capitals.
const CAPITALS: &[&str] = &[
    "DELETE", "GET", "Google", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "True", "Metadata",
];

pub(super) fn is_known(word: &str) -> bool {
    WORDS.binary_search(&word).is_ok() || CAPITALS.contains(&word)
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_are_sorted() {
        assert!(super::WORDS.is_sorted(), "binary search needs it");
    }
}
