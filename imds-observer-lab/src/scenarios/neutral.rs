//! Removes the details of this machine from a trace, so that it can be kept: its directories, and the process that started the scenarios.

use std::path::Path;

/// Directory shown for programs of the scenarios.
const PLACE: &str = "/opt/clients";

/// Replaces names that are specific to this machine in lines of a trace.
pub struct Neutral {
    /// Names and their replacements, longest first, so that a directory doesn't hide one below it.
    names: Vec<(String, String)>,
    /// The process that started all others.
    root_pid: u32,
    /// The part of this kernel's release after the version.
    build: String,
}

impl Neutral {
    /// `directories`: paths, each with its replacement name below `/opt/clients`. `root`: PID and name of the process that started all
    /// others.
    pub fn new(directories: &[(&Path, &str)], root: (u32, &str), kernel: &str) -> Self {
        let mut names: Vec<(String, String)> = directories
            .iter()
            .map(|(path, name)| (json_text(&path.to_string_lossy()), format!("{PLACE}/{name}")))
            .collect();
        // Findings contain the name of a parent process too.
        names.push((json_text(root.1), "systemd".to_owned()));
        names.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        Self {
            names,
            root_pid: root.0,
            build: json_text(build_of(kernel)),
        }
    }

    pub fn line(&self, line: &str) -> String {
        let line = self
            .names
            .iter()
            .fold(line.to_owned(), |line, (from, to)| line.replace(from, to));
        let line = if self.build.is_empty() {
            line
        } else {
            // The replacement has the same length, as in the capture of the same scenario.
            line.replace(&self.build, &"x".repeat(self.build.len()))
        };
        self.ancestors(&line)
    }

    /// Replaces the process that started the scenarios, and all its ancestors, by init.
    fn ancestors(&self, line: &str) -> String {
        const INIT: &str = r#"{"pid":1,"comm":"systemd"}"#;
        let root = format!(r#"{{"pid":{},"#, self.root_pid);
        let mut out = String::with_capacity(line.len());
        let mut rest = line;
        while let Some(at) = rest.find(r#""ancestors":["#) {
            let (before, list) = rest.split_at(at + r#""ancestors":["#.len());
            out.push_str(before);
            // The list ends after an object. A bracket within a name doesn't follow a brace.
            let end = if list.starts_with(']') {
                0
            } else {
                list.find("}]").map_or(list.len(), |end| end + 1)
            };
            let (list, after) = list.split_at(end);
            match list.find(&root) {
                Some(at) => {
                    out.push_str(&list[..at]);
                    out.push_str(INIT);
                }
                None => out.push_str(list),
            }
            rest = after;
        }
        out + rest
    }
}

/// The part `-mine` of `6.1.2-mine`, which clients send in their user agents.
pub fn build_of(kernel: &str) -> &str {
    kernel.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
}

/// Escapes text as in a JSON string.
fn json_text(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_this_machine_stays() {
        let neutral = Neutral::new(
            &[(Path::new("/home/me"), "home"), (Path::new("/home/me/tools"), "tools")],
            (77, "mine-too"),
            "6.1.2-mine",
        );
        let line = r#"{"exe":"/home/me/tools/bin/x","ancestors":[{"pid":80,"comm":"bash"},{"pid":77,"comm":"mine"},{"pid":5,"comm":"[x]"}],"b":[{"ancestors":[]},{"ancestors":[{"pid":1,"comm":"a"}]}],"c":"/home/me/y"}"#;
        assert_eq!(
            neutral.line(line),
            r#"{"exe":"/opt/clients/tools/bin/x","ancestors":[{"pid":80,"comm":"bash"},{"pid":1,"comm":"systemd"}],"b":[{"ancestors":[]},{"ancestors":[{"pid":1,"comm":"a"}]}],"c":"/opt/clients/home/y"}"#
        );
        assert_eq!(neutral.line(r#"{"kernel":"6.1.2-mine"}"#), r#"{"kernel":"6.1.2xxxxx"}"#);
        assert_eq!(
            neutral.line(r#""curl (parent mine-too 77)""#),
            r#""curl (parent systemd 77)""#
        );
    }
}
