//! `man`: the manual pages, for packages.

use clap::{Args, Command, CommandFactory as _};
use clap_mangen::Man;

use super::{Cli, Status, print};

/// Print a manual page in roff
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Print the page of this command [default: the program's page]
    command: Option<String>,
    /// Print the names of all pages instead
    #[arg(long, conflicts_with = "command")]
    list: bool,
}

/// Date of this version in CHANGELOG.md; `tests/release.rs` compares them. The published crate doesn't contain the changelog, and the
/// build date would make builds irreproducible.
const DATE: &str = "2026-11-30";

/// Sections that clap doesn't generate.
const SEE_ALSO: &str = "\
.SH FILES\n\
.TP\n\
.I /etc/imds\\-observer.toml\n\
Configuration of the service, with all keys and their defaults.\n\
.TP\n\
.I /var/log/imds\\-observer\n\
Records of the service.\n\
.SH ENVIRONMENT\n\
.TP\n\
.B IMDS_OBSERVER_LOG\n\
Level of log lines on standard error:\n\
.BR error ,\n\
.B warn\n\
(the default),\n\
.B info\n\
or\n\
.BR debug .\n\
.TP\n\
.B NO_COLOR\n\
Disables color on a terminal.\n";

impl ManArgs {
    pub(super) fn run(&self) -> anyhow::Result<Status> {
        let mut program = Cli::command();
        program.build();
        if self.list {
            let names: Vec<String> = pages(&program).map(name).collect();
            print(&(names.join("\n") + "\n"))?;
            return Ok(Status::Done);
        }
        let page = match &self.command {
            None => &program,
            Some(wanted) => pages(&program)
                .find(|page| page.get_name() == wanted || name(page) == *wanted)
                .ok_or_else(|| anyhow::anyhow!("man {wanted}: no such command (see `imds-observer man --list`)"))?,
        };
        print(&roff(page)?)?;
        Ok(Status::Done)
    }
}

/// The program's page, and one for each visible command.
fn pages(program: &Command) -> impl Iterator<Item = &Command> {
    let shown = |command: &&Command| !command.is_hide_set() && command.get_name() != "help";
    std::iter::once(program).chain(program.get_subcommands().filter(shown))
}

/// `imds-observer-watch`
fn name(page: &Command) -> String {
    page.get_display_name().unwrap_or_else(|| page.get_name()).to_owned()
}

fn roff(page: &Command) -> anyhow::Result<String> {
    let mut roff = Vec::new();
    let title = name(page);
    // Without the text after the options: clap_mangen would join its lines.
    let after = page.get_after_long_help().map(ToString::to_string);
    Man::new(page.clone().after_help(None::<&str>).after_long_help(None::<&str>))
        .title(title.to_uppercase())
        .manual("imds-observer")
        .date(DATE)
        .render(&mut roff)?;
    // clap_mangen emits `.br` beside empty lines, which mandoc warns about.
    let mut text = String::from_utf8(roff)?
        .replace(".br\n\n.br\n", ".sp\n")
        .replace("\n\n.br\n", "\n");
    if let Some(after) = &after {
        sections(after, &mut text);
    }
    text.push_str(SEE_ALSO);
    Ok(text)
}

/// Help text after the options as sections: a line that ends in a colon is a title, indented lines stay as they are.
fn sections(after: &str, text: &mut String) {
    let escape = |line: &str| line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    let mut verbatim = false;
    for line in after.lines().filter(|line| !line.is_empty()) {
        let indented = line.starts_with(' ');
        if verbatim != indented {
            text.push_str(if indented { ".nf\n" } else { ".fi\n" });
            verbatim = indented;
        }
        match line.strip_suffix(':') {
            Some(title) if !indented => text.push_str(&format!(".SH {}\n", title.to_uppercase())),
            _ if indented => text.push_str(&format!("\\&{}\n", escape(line))),
            _ => text.push_str(&format!(".PP\n{}\n", escape(line))),
        }
    }
    if verbatim {
        text.push_str(".fi\n");
    }
}
