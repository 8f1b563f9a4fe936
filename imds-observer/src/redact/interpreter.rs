//! Which argument of an interpreter is code, which is its script.

/// Longest name of an interpreter's executable, its version included.
const MAX_NAME_BYTES: usize = 24;

/// Role of an argument of an interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Option,
    /// The value of the option before it.
    Value,
    /// Code, from this byte of the argument.
    Code(usize),
    /// A module's name, from this byte of the argument.
    Module(usize),
    /// The script, or the class that is run.
    Script,
    /// An argument of the script.
    Argument,
}

/// How an interpreter reads its options.
struct Grammar {
    /// Short options whose value is code. In a group of short options too: `-lc`.
    code: &'static str,
    /// Long options whose value is code.
    long_code: &'static [&'static str],
    /// Short options whose value is a module to run.
    module: &'static str,
    /// Short options without a value that may precede a module's: what follows another letter may be a value, and a module is shown.
    flags: &'static str,
    /// Short options with another value.
    value: &'static str,
    /// Long options, or options of one dash and several letters, with another value.
    long_value: &'static [&'static str],
    /// The code is the first argument behind the options, not the value of the option.
    code_behind_options: bool,
    /// A word that comes first and makes the next argument code: `deno eval CODE`.
    code_command: &'static str,
    /// The program is code unless it comes from a file: awk, sed.
    code_first: bool,
}

const PLAIN: Grammar = Grammar {
    code: "",
    long_code: &[],
    module: "",
    flags: "",
    value: "",
    long_value: &[],
    code_behind_options: false,
    code_command: "",
    code_first: false,
};

const PYTHON: Grammar = Grammar {
    code: "c",
    module: "m",
    flags: "bBdEhiIOPqRsSuvVx",
    value: "WXQ",
    long_value: &["--check-hash-based-pycs"],
    ..PLAIN
};
const SHELL: Grammar = Grammar {
    code: "c",
    value: "oO",
    long_value: &["--rcfile", "--init-file"],
    long_code: &["--command"],
    code_behind_options: true,
    ..PLAIN
};
const NODE: Grammar = Grammar {
    code: "ep",
    long_code: &["--eval", "--print"],
    value: "rC",
    long_value: &["--require", "--import", "--loader", "--conditions", "--env-file"],
    code_command: "eval",
    ..PLAIN
};
const PERL: Grammar = Grammar {
    code: "eE",
    value: "MmI",
    ..PLAIN
};
const RUBY: Grammar = Grammar {
    code: "e",
    value: "rICE",
    long_value: &["--require"],
    ..PLAIN
};
const PHP: Grammar = Grammar {
    code: "rBRE",
    long_code: &["--run", "--process-begin", "--process-code", "--process-end"],
    value: "dcz",
    ..PLAIN
};
const LUA: Grammar = Grammar {
    code: "e",
    value: "l",
    ..PLAIN
};
const R: Grammar = Grammar { code: "e", ..PLAIN };
const AWK: Grammar = Grammar {
    value: "fFv",
    long_value: &["--file", "--assign"],
    long_code: &["--source"],
    code: "e",
    code_first: true,
    ..PLAIN
};
const SED: Grammar = Grammar {
    code: "e",
    long_code: &["--expression"],
    value: "fl",
    long_value: &["--file"],
    code_first: true,
    ..PLAIN
};
const POWERSHELL: Grammar = Grammar {
    long_code: &["-command", "-c", "-encodedcommand", "-e", "-ec"],
    long_value: &["-file", "-f"],
    ..PLAIN
};
const JAVA: Grammar = Grammar {
    long_value: &[
        "-cp",
        "-classpath",
        "--class-path",
        "-p",
        "--module-path",
        "--add-opens",
        "--add-modules",
        "--add-exports",
    ],
    ..PLAIN
};

fn grammar(stem: &str) -> Option<&'static Grammar> {
    Some(match stem {
        "python" | "pypy" => &PYTHON,
        "bash" | "sh" | "dash" | "zsh" | "ash" | "ksh" | "mksh" | "fish" | "busybox" | "rbash" => &SHELL,
        "node" | "nodejs" | "deno" | "bun" | "tsx" => &NODE,
        "perl" => &PERL,
        "ruby" | "jruby" => &RUBY,
        "php" | "php-cli" => &PHP,
        "lua" | "luajit" => &LUA,
        "Rscript" | "R" | "julia" | "elixir" | "groovy" => &R,
        "awk" | "gawk" | "mawk" | "nawk" => &AWK,
        "sed" | "gsed" => &SED,
        "pwsh" | "powershell" => &POWERSHELL,
        "java" => &JAVA,
        "dotnet" => &PLAIN,
        _ => return None,
    })
}

/// `/usr/bin/python3.11` is `python`; a login shell is called `-bash`.
fn stem(executable: &str) -> Option<&str> {
    let name = executable.rsplit('/').find(|part| !part.is_empty())?;
    let name = name.strip_prefix('-').unwrap_or(name);
    (name.len() <= MAX_NAME_BYTES)
        .then(|| name.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-')))
}

/// Roles of the arguments after the program's name for `executable`; `None` if it is no interpreter.
pub fn roles<'a>(executable: &str, arguments: impl Iterator<Item = &'a str>) -> Option<Vec<Role>> {
    let stem = stem(executable)?;
    let grammar = grammar(stem)?;
    let mut roles = Vec::new();
    let mut arguments = arguments.peekable();
    // `busybox sh -c CODE`: the applet comes first.
    if stem == "busybox" && arguments.next_if(|applet| !applet.starts_with('-')).is_some() {
        roles.push(Role::Option);
    }
    let mut state = Scan {
        grammar,
        next: None,
        code_awaited: false,
        options: true,
        found: false,
    };
    roles.extend(arguments.map(|argument| state.role(argument)));
    Some(roles)
}

struct Scan {
    grammar: &'static Grammar,
    /// Role of the next argument, whatever it looks like.
    next: Option<Role>,
    /// A shell's `-c` has come, its code hasn't.
    code_awaited: bool,
    options: bool,
    /// Code or script: what comes then belongs to it.
    found: bool,
}

impl Scan {
    fn role(&mut self, argument: &str) -> Role {
        if let Some(next) = self.next.take() {
            return next;
        }
        let is_option = self.options && argument.len() > 1 && argument.starts_with(['-', '+']);
        if !is_option {
            return self.first(argument);
        }
        if argument == "--" {
            self.options = false;
            return Role::Option;
        }
        let lower = argument.to_ascii_lowercase();
        let (name, value_at) = match argument.find('=') {
            Some(at) => (&lower[..at], Some(at + 1)),
            None => (&lower[..], None),
        };
        if self.grammar.long_code.contains(&name) {
            return match value_at {
                Some(at) => self.code(at),
                None => self.expect(Role::Code(0)),
            };
        }
        if self.grammar.long_value.contains(&name) {
            if value_at.is_none() {
                self.next = Some(Role::Value);
            }
            return Role::Option;
        }
        if argument.starts_with("--") || argument.starts_with('+') {
            return Role::Option;
        }
        self.group(argument)
    }

    /// The first argument that is no option: script or code. Later ones belong to it.
    fn first(&mut self, argument: &str) -> Role {
        if self.found && !self.code_awaited {
            return Role::Argument;
        }
        if !self.grammar.code_command.is_empty() && argument == self.grammar.code_command {
            return self.expect(Role::Code(0));
        }
        let code = self.code_awaited || self.grammar.code_first;
        self.found = true;
        self.code_awaited = false;
        // Options of awk's and sed's program may follow; a script's own options are arguments.
        self.options = false;
        if code { Role::Code(0) } else { Role::Script }
    }

    /// `-lc`, `-uc`, `-ne`, `-cCODE`: letters up to the one that has a value.
    fn group(&mut self, argument: &str) -> Role {
        for (at, letter) in argument.char_indices().skip(1) {
            if !letter.is_ascii_alphabetic() {
                break;
            }
            let behind = at + letter.len_utf8();
            let attached = behind < argument.len();
            if self.grammar.code.contains(letter) {
                if self.grammar.code_behind_options {
                    self.code_awaited = true;
                    self.found = true;
                    continue;
                }
                // Node's `-pe CODE`: both letters want the same code.
                if attached
                    && argument[behind..]
                        .chars()
                        .all(|letter| self.grammar.code.contains(letter))
                {
                    continue;
                }
                return if attached {
                    self.code(behind)
                } else {
                    self.expect(Role::Code(0))
                };
            }
            if self.grammar.module.contains(letter) {
                if !argument[1..at].chars().all(|flag| self.grammar.flags.contains(flag)) {
                    return Role::Option;
                }
                self.found = true;
                self.options = false;
                if attached {
                    return Role::Module(behind);
                }
                self.next = Some(Role::Module(0));
                return Role::Option;
            }
            if self.grammar.value.contains(letter) {
                if !attached {
                    self.next = Some(Role::Value);
                }
                return Role::Option;
            }
        }
        Role::Option
    }

    fn code(&mut self, at: usize) -> Role {
        self.found = true;
        Role::Code(at)
    }

    fn expect(&mut self, next: Role) -> Role {
        self.found = true;
        self.next = Some(next);
        Role::Option
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("python3.11", "-uc CODE x", &[Role::Option, Role::Code(0), Role::Argument])]
    #[case("python3", "-cCODE", &[Role::Code(2)])]
    #[case("python3", "-W error -um app.main -c x", &[Role::Option, Role::Value, Role::Option, Role::Module(0), Role::Argument, Role::Argument])]
    #[case("python3", "-pmodule app.py", &[Role::Option, Role::Script])]
    #[case("/usr/bin/python3", "-u app.py -c x", &[Role::Option, Role::Script, Role::Argument, Role::Argument])]
    #[case("bash", "-lc CODE name", &[Role::Option, Role::Code(0), Role::Argument])]
    #[case("-bash", "-c -e CODE", &[Role::Option, Role::Option, Role::Code(0)])]
    #[case("sh", "-ec CODE", &[Role::Option, Role::Code(0)])]
    #[case("bash", "-eo pipefail -c CODE", &[Role::Option, Role::Value, Role::Option, Role::Code(0)])]
    #[case("bash", "-ceuo pipefail CODE", &[Role::Option, Role::Value, Role::Code(0)])]
    #[case("bash", "script.sh -c x", &[Role::Script, Role::Argument, Role::Argument])]
    #[case("busybox", "sh -c CODE", &[Role::Option, Role::Option, Role::Code(0)])]
    #[case("node", "-e CODE", &[Role::Option, Role::Code(0)])]
    #[case("node", "-pe CODE", &[Role::Option, Role::Code(0)])]
    #[case("node", "--eval=CODE", &[Role::Code(7)])]
    #[case("deno", "eval CODE", &[Role::Option, Role::Code(0)])]
    #[case("perl", "-ne CODE f", &[Role::Option, Role::Code(0), Role::Argument])]
    #[case("perl", "-eCODE", &[Role::Code(2)])]
    #[case("perl", "-MLWP -E CODE -e CODE", &[Role::Option, Role::Option, Role::Code(0), Role::Option, Role::Code(0)])]
    #[case("ruby3.2", "-rnet/http -e CODE", &[Role::Option, Role::Option, Role::Code(0)])]
    #[case("php8.2", "-r CODE", &[Role::Option, Role::Code(0)])]
    #[case("gawk", "-F : CODE f", &[Role::Option, Role::Value, Role::Code(0), Role::Argument])]
    #[case("java", "-Xmx1g -cp a.jar com.example.Main", &[Role::Option, Role::Option, Role::Value, Role::Script])]
    fn arguments_have_roles(#[case] executable: &str, #[case] line: &str, #[case] expected: &[Role]) {
        assert_eq!(roles(executable, line.split(' ')).unwrap(), expected);
    }

    #[test]
    fn other_programs_have_none() {
        assert!(roles("/usr/bin/curl", ["-s"].into_iter()).is_none());
        assert!(roles("", [""].into_iter()).is_none());
    }
}
