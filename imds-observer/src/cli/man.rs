//! `man`: the manual pages, for those who make packages.

use clap::{Args, Command, CommandFactory as _};
use clap_mangen::Man;

use super::{Cli, Status, print};

/// Print a manual page in roff: the program's, or that of one command
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Command whose page is printed [default: the program's]
    command: Option<String>,
    /// Print the names of all pages instead
    #[arg(long, conflicts_with = "command")]
    list: bool,
}

/// Date of this version in CHANGELOG.md, which the published crate doesn't have; `tests/release.rs` compares. It isn't the date of the
/// build, so that the same sources give the same bytes.
const DATE: &str = "2026-11-30";

/// What the options don't say.
const SEE_ALSO: &str = "\
.SH FILES\n\
.TP\n\
.I /etc/imds\\-observer.toml\n\
Configuration of the service; all keys with their defaults.\n\
.TP\n\
.I /var/log/imds\\-observer\n\
Records of the service.\n\
.SH ENVIRONMENT\n\
.TP\n\
.B IMDS_OBSERVER_LOG\n\
Log lines on standard error:\n\
.BR error ,\n\
.B warn\n\
(the default),\n\
.B info\n\
or\n\
.BR debug .\n\
.TP\n\
.B NO_COLOR\n\
No colour, also on a terminal.\n";

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
                .ok_or_else(|| {
                    anyhow::anyhow!("man {wanted}: no such command (`imds-observer man --list` names all)")
                })?,
        };
        print(&roff(page)?)?;
        Ok(Status::Done)
    }
}

/// The program's page and one a command, of those that are shown.
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
    Man::new(page.clone())
        .title(title.to_uppercase())
        .manual("imds-observer")
        .date(DATE)
        .render(&mut roff)?;
    // clap_mangen breaks lines around empty ones, and begins entries with them: idle, says mandoc.
    let mut text = String::from_utf8(roff)?
        .replace(".br\n\n.br\n", ".sp\n")
        .replace("\n\n.br\n", "\n");
    text.push_str(SEE_ALSO);
    Ok(text)
}
