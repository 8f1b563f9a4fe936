//! Command lines, by an allow-list: what is not known is replaced.

use super::interpreter::{Role, roles};
use super::task_ids::PathContext;
use super::{Cmdline, MARK, is_mark, mark_of, mode, shape, text};

/// Short options that many programs use for a password or a key, so that the argument behind them is replaced.
const SECRET_LETTERS: &[&str] = &["-p", "-P", "-a", "-w", "-W", "-k", "-K", "-u", "-U", "-D"];
/// Options of one dash and several letters, as Go's and Java's programs have them.
const LONG_WITH_ONE_DASH: &[&str] = &[
    "-addr",
    "-classpath",
    "-config",
    "-cp",
    "-daemon",
    "-debug",
    "-dev",
    "-ea",
    "-env",
    "-file",
    "-help",
    "-host",
    "-jar",
    "-listen",
    "-log",
    "-name",
    "-port",
    "-role",
    "-server",
    "-test",
    "-url",
    "-version",
];

/// The arguments as far as they may be shown; `None` where none is wanted.
pub fn command_line(executable: Option<&str>, arguments: Vec<String>) -> Option<Vec<String>> {
    by_mode(mode(), executable, arguments)
}

fn by_mode(mode: Cmdline, executable: Option<&str>, arguments: Vec<String>) -> Option<Vec<String>> {
    match mode {
        Cmdline::Full => Some(
            arguments
                .into_iter()
                .map(|argument| text::printable(argument.as_bytes(), usize::MAX))
                .collect(),
        ),
        Cmdline::Redacted => Some(redacted(executable, &arguments)),
        Cmdline::None => None,
    }
}

fn redacted(executable: Option<&str>, arguments: &[String]) -> Vec<String> {
    let Some((name, rest)) = arguments.split_first() else {
        return Vec::new();
    };
    let strings = || rest.iter().map(String::as_str);
    // The kernel's name for the executable counts; the first argument is what the caller passed, and replaces `busybox` or an unknown one.
    let roles = executable
        .and_then(|executable| roles(executable, strings()))
        .or_else(|| roles(name, strings()));
    let mut out = vec![title(name)];
    let mut line = Line { secret_next: false };
    for (at, argument) in rest.iter().enumerate() {
        let role = roles.as_ref().and_then(|roles| roles.get(at)).copied();
        out.push(line.argument(argument, role));
    }
    out
}

/// The name that a program was called by. Some overwrite it with a title of several words: `nginx: worker process`.
fn title(name: &str) -> String {
    let words: Vec<String> = name
        .split(' ')
        .map(|word| {
            let bare = word.strip_suffix(':').unwrap_or(word);
            if is_mark(word) || bare.split('/').all(shape::is_wordy) && !bare.contains('=') {
                word.to_owned()
            } else {
                MARK.to_owned()
            }
        })
        .collect();
    let known = |word: &String| shape::is_plain(word) || word == MARK;
    if text::without_task_ids(name, PathContext::Text).is_some() {
        return mark_of(name);
    }
    // Only the first word is a name.
    if words.iter().skip(1).all(known) {
        return words.join(" ");
    }
    format!("{} {MARK}", words[0])
}

struct Line {
    /// The option before wants a secret.
    secret_next: bool,
}

impl Line {
    fn argument(&mut self, argument: &str, role: Option<Role>) -> String {
        let secret = std::mem::take(&mut self.secret_next);
        if is_mark(argument) {
            return argument.to_owned();
        }
        match role {
            Some(Role::Code(at)) => return behind(argument, at, mark_of),
            Some(Role::Module(at)) => {
                return behind(argument, at, |module| {
                    if shape::is_file_name(module) {
                        module.to_owned()
                    } else {
                        mark_of(module)
                    }
                });
            }
            Some(Role::Script) if !secret && shape::is_script(argument) => return argument.to_owned(),
            // An interpreter's own short options want no secrets: `python3 -u app.py`.
            Some(Role::Option) if argument.starts_with('-') && !argument.starts_with("--") => {
                let shown = self.option(argument);
                self.secret_next = false;
                return shown;
            }
            _ => {}
        }
        if secret && !argument.is_empty() {
            return MARK.to_owned();
        }
        if argument.len() > 1 && argument.starts_with('-') && argument != "--" {
            return self.option(argument);
        }
        assignment(argument)
            .or_else(|| shape::header(argument))
            .or_else(|| shape::shown(argument))
            .unwrap_or_else(|| mark_of(argument))
    }

    /// `-x`, `-xyz`, `--name`, `--name=value`.
    fn option(&mut self, argument: &str) -> String {
        let (name, value) = argument
            .split_once('=')
            .map_or((argument, None), |(name, value)| (name, Some(value)));
        if !is_option_name(name) {
            return mark_of(argument);
        }
        let secret = SECRET_LETTERS.contains(&name) || text::is_secret_name(name.as_bytes());
        // `--token-file /run/token` names no secret, only its place.
        let place = ["-file", "-path", "-dir", "-url", "-uri", "-endpoint"]
            .iter()
            .any(|ending| name.ends_with(ending));
        match value {
            None => {
                self.secret_next = secret && !place;
                name.to_owned()
            }
            Some("") => format!("{name}="),
            Some(value) => {
                let shown = shape::shown(value).filter(|_| !secret || place && shape::is_path(value));
                format!("{name}={}", shown.as_deref().unwrap_or(MARK))
            }
        }
    }
}

/// The argument's start as it is, and the rest as `show` shows it.
fn behind(argument: &str, at: usize, show: impl Fn(&str) -> String) -> String {
    match argument.split_at_checked(at) {
        Some((start, rest)) if start.is_empty() || is_option_name(start.trim_end_matches('=')) => {
            format!("{start}{}", show(rest))
        }
        _ => mark_of(argument),
    }
}

/// Letters that are options, or words joined by dashes.
fn is_option_name(name: &str) -> bool {
    let word = |word: &str| {
        let letters = word.trim_end_matches(|c: char| c.is_ascii_digit());
        word.len() <= 24 && word.len() - letters.len() <= 2 && letters.bytes().all(|byte| byte.is_ascii_lowercase())
    };
    if let Some(long) = name.strip_prefix("--") {
        return long.len() <= 64 && !long.is_empty() && long.split(['-', '_', '.']).all(word);
    }
    let Some(short) = name.strip_prefix('-') else {
        return false;
    };
    // `-Dspring.profiles.active`, `-Xmx1g`.
    let java = short.strip_prefix('D').is_some_and(|property| {
        property.contains('.')
            && property.len() <= 64
            && property
                .split('.')
                .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase()))
    });
    let memory = ["Xmx", "Xms", "Xss"].iter().any(|option| {
        short
            .strip_prefix(option)
            .is_some_and(|size| (2..=7).contains(&size.len()) && shape::is_plain(size))
    });
    let group = (1..=3).contains(&short.len())
        && short
            .bytes()
            .all(|byte| byte.is_ascii_alphabetic() || byte.is_ascii_digit() && short.len() == 1);
    group || java || memory || LONG_WITH_ONE_DASH.contains(&name)
}

/// `NAME=value`, as for `env` or `dd`. A text that ends in `=` may be base64.
fn assignment(argument: &str) -> Option<String> {
    let (name, value) = argument.split_once('=')?;
    let upper = |word: &str| {
        let letters = word.trim_end_matches(|c: char| c.is_ascii_digit());
        !word.is_empty()
            && word.len() <= 16
            && word.len() - letters.len() <= 2
            && letters.bytes().all(|byte| byte.is_ascii_uppercase())
    };
    let lower = |word: &str| {
        let letters = word.trim_end_matches(|c: char| c.is_ascii_digit());
        !word.is_empty()
            && word.len() <= 24
            && word.len() - letters.len() <= 2
            && letters.bytes().all(|byte| byte.is_ascii_lowercase())
    };
    let is_name = name.len() <= 64 && (name.split('_').all(upper) || name.split(['_', '.', '-']).all(lower));
    if !is_name || value.is_empty() {
        return None;
    }
    let shown = shape::shown(value).filter(|_| !text::is_secret_name(name.as_bytes()));
    Some(format!("{name}={}", shown.as_deref().unwrap_or(MARK)))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Arguments separated by `|`.
    fn shown(line: &str) -> String {
        let arguments = line.split('|').map(str::to_owned).collect();
        let shown = by_mode(Cmdline::Redacted, None, arguments).unwrap().join("|");
        // Fingerprints differ between hosts.
        let mut plain = String::new();
        let mut rest = shown.as_str();
        while let Some((before, behind)) = rest.split_once("[redacted #") {
            plain.push_str(before);
            plain.push_str("[#]");
            rest = behind.split_once(']').unwrap().1;
        }
        plain + rest
    }

    #[rstest]
    #[case("curl|-s|-X|PUT|http://169.254.169.254/latest/api/token|-H|X-aws-ec2-metadata-token-ttl-seconds: 21600")]
    #[case("python3|-u|/srv/app.py|--port|8080|--region=us-east-1|--debug")]
    #[case("python3|-m|app.main|serve")]
    #[case("java|-Xmx1g|-Dspring.profiles.active=prod|-cp|/lib/a.jar|com.example.Main")]
    #[case("aws|s3|ls|--region|eu-central-1|--output|json")]
    #[case("amazon-ssm-agent")]
    #[case("/usr/bin/kubelet|--config=/etc/kubernetes/kubelet-config.yaml|--node-ip=10.0.1.5|--v=2")]
    #[case("node|server.js")]
    #[case("/usr/bin/python3|/usr/bin/cloud-init|init")]
    #[case("-bash")]
    #[case("sh||")]
    fn what_is_known_stays(#[case] line: &str) {
        assert_eq!(shown(line), line);
        assert_eq!(shown(&shown(line)), line, "once more");
    }

    #[rstest]
    #[case("tool|--token|S3CRET|run", "tool|--token|[redacted]|run")]
    #[case("tool|--token=|--token=S3CRET", "tool|--token=|--token=[redacted]")]
    #[case("tool|--password=hunter", "tool|--password=[redacted]")]
    #[case("tool|--password=8080", "tool|--password=[redacted]")]
    #[case("mysql|-pS3cret|-u|root", "mysql|[#]|-u|[redacted]")]
    #[case("curl|-H|Authorization: Bearer S3CRET", "curl|-H|Authorization: [redacted]")]
    #[case(
        "curl|-H|X-aws-ec2-metadata-token:AQAEmadeup==",
        "curl|-H|X-aws-ec2-metadata-token:[redacted]"
    )]
    #[case("curl|-d|{\"token\":\"S3CRET\"}", "curl|-d|[#]")]
    #[case(
        "curl|http://user:pa/ss@host.example.com/x",
        "curl|http://[redacted]@host.example.com/x"
    )]
    #[case(
        "curl|http://169.254.169.254/?token=&token=S3CRET",
        "curl|http://169.254.169.254/?token=&token=[redacted]"
    )]
    #[case(
        "curl|https://hooks.example.com/services/T01ABCDEF/B01/aB3dE5gH7jK9",
        "curl|https://hooks.example.com/services/[redacted]/B01/[redacted]"
    )]
    #[case(
        "env|AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG|app",
        "env|AWS_SECRET_ACCESS_KEY=[redacted]|app"
    )]
    #[case("sshpass|-p|12345|ssh", "sshpass|-p|[redacted]|[#]")]
    #[case("login|geheim", "login|[#]")]
    #[case("python3|-uc|import os|x1y2z3a4b5", "python3|-uc|[#]|[#]")]
    #[case("bash|-lc|curl -H 'token: S3CRET'", "bash|-lc|[#]")]
    #[case("perl|-eprint(1)", "perl|-e[#]")]
    #[case("node|--eval=x()", "node|--eval=[#]")]
    #[case("tool|--token-file|/run/secrets/token", "tool|--token-file|/run/secrets/token")]
    #[case("nginx: worker S3CRETS3CRET1x", "nginx: worker [redacted]")]
    fn what_is_not_known_goes(#[case] line: &str, #[case] expected: &str) {
        assert_eq!(shown(line), expected);
        assert_eq!(
            shown(&shown(line)).replace("[#]", ""),
            expected.replace("[#]", ""),
            "once more"
        );
    }

    #[test]
    fn modes() {
        let line = || vec!["login".to_owned(), "geheim".to_owned(), "--token=x".to_owned()];
        assert_eq!(by_mode(Cmdline::None, None, line()), None);
        let full = by_mode(Cmdline::Full, None, line()).unwrap();
        assert_eq!(full, ["login", "geheim", "--token=[redacted]"]);
    }
}
