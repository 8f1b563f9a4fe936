//! `words`: checks that the text of this repository uses the agreed words.
//!
//! Text means Markdown, configuration, comments and string literals. `xtask/words.toml` lists the words to avoid and the permitted number
//! of occurrences per area.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;
use ra_ap_rustc_lexer::{FrontmatterAllowed, LiteralKind, TokenKind, tokenize};
use regex::{Regex, RegexBuilder};
use xshell::cmd;

use crate::run::{root, shell};

/// Check documentation, help, messages and comments for words to avoid
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// List every occurrence, also in areas below their limit
    #[arg(long)]
    list: bool,
    /// Check only this area
    #[arg(long)]
    area: Option<Area>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Area {
    Docs,
    Configuration,
    Help,
    Messages,
    Tools,
    Comments,
}

impl Area {
    const ALL: [Self; 6] = [
        Self::Docs,
        Self::Configuration,
        Self::Help,
        Self::Messages,
        Self::Tools,
        Self::Comments,
    ];
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docs => "docs",
            Self::Configuration => "configuration",
            Self::Help => "help",
            Self::Messages => "messages",
            Self::Tools => "tools",
            Self::Comments => "comments",
        })
    }
}

/// Consecutive text of one area. Lines count from 1.
#[derive(Debug, PartialEq, Eq)]
struct Text {
    area: Area,
    line: usize,
    text: String,
}

struct Rule {
    pattern: Regex,
    instead: String,
}

struct List {
    limits: BTreeMap<String, usize>,
    rules: Vec<Rule>,
}

/// An occurrence of a word to avoid.
struct Hit {
    area: Area,
    place: String,
    word: String,
    instead: String,
}

/// Fails if an area is over its limit.
pub(crate) fn check() -> anyhow::Result<()> {
    run(&Args {
        list: false,
        area: None,
    })
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let list = List::parse(include_str!("../words.toml"))?;
    let hits = hits(&list)?;
    let mut over = Vec::new();
    for area in Area::ALL {
        if args.area.is_some_and(|wanted| wanted != area) {
            continue;
        }
        let found: Vec<&Hit> = hits.iter().filter(|hit| hit.area == area).collect();
        let limit = list.limits.get(&area.to_string()).copied().unwrap_or_default();
        println!("{area}: {} (at most {limit})", found.len());
        if found.len() > limit {
            over.push(area.to_string());
        }
        if args.list || found.len() > limit {
            for hit in found {
                println!("  {}: {:?} (instead: {})", hit.place, hit.word, hit.instead);
            }
        }
    }
    if !over.is_empty() {
        bail!("too many words of xtask/words.toml in: {}", over.join(", "));
    }
    Ok(())
}

fn hits(list: &List) -> anyhow::Result<Vec<Hit>> {
    let sh = shell()?;
    let files = cmd!(sh, "git ls-files --cached --others --exclude-standard")
        .quiet()
        .read()?;
    let mut hits = Vec::new();
    for path in files.lines() {
        let Some(read) = reader(path) else { continue };
        let file = root().join(path);
        // A file that is deleted but not yet committed is still listed.
        let Ok(source) = fs::read_to_string(&file) else {
            continue;
        };
        for text in read(path, &source) {
            list.check(path, &text, &mut hits);
        }
    }
    Ok(hits)
}

type Reader = fn(&str, &str) -> Vec<Text>;

fn reader(path: &str) -> Option<Reader> {
    if path == "xtask/words.toml" || path == "xtask/src/words.rs" {
        return None;
    }
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
    match extension {
        Some("md") => Some(markdown),
        Some("rs") => Some(rust),
        Some("html") => Some(configuration),
        _ if path.starts_with("deploy/") && extension != Some("json") => Some(configuration),
        _ => None,
    }
}

impl List {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let table: toml::Table = text.parse().context("parse xtask/words.toml")?;
        let section = |name: &str| {
            let section = table.get(name).and_then(toml::Value::as_table);
            section.with_context(|| format!("xtask/words.toml: no section [{name}]"))
        };
        let mut limits = BTreeMap::new();
        for (area, limit) in section("limits")? {
            let limit = limit.as_integer().and_then(|limit| usize::try_from(limit).ok());
            limits.insert(area.clone(), limit.with_context(|| format!("limit of {area}"))?);
        }
        let mut rules = Vec::new();
        for (pattern, instead) in section("words")?.iter().chain(section("spelling")?) {
            rules.push(Rule {
                pattern: RegexBuilder::new(&format!(r"\b(?:{})\b", pattern.replace(' ', r"\s+")))
                    .case_insensitive(true)
                    .build()
                    .with_context(|| format!("xtask/words.toml: {pattern}"))?,
                instead: instead.as_str().unwrap_or_default().to_owned(),
            });
        }
        Ok(Self { limits, rules })
    }

    fn check(&self, path: &str, text: &Text, hits: &mut Vec<Hit>) {
        for rule in &self.rules {
            for found in rule.pattern.find_iter(&text.text) {
                // "stand-in" is an established word.
                if text.text[found.end()..].starts_with("-in") {
                    continue;
                }
                let line = text.line + text.text[..found.start()].matches('\n').count();
                hits.push(Hit {
                    area: text.area,
                    place: format!("{path}:{line}"),
                    word: found.as_str().to_owned(),
                    instead: rule.instead.clone(),
                });
            }
        }
    }
}

/// Prose without code blocks and code spans, which are blanked so that line numbers stay the same.
fn markdown(_: &str, source: &str) -> Vec<Text> {
    let mut fenced = false;
    let lines = source.lines().map(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        if fence || fenced {
            String::new()
        } else {
            without_code(line)
        }
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    vec![Text {
        area: Area::Docs,
        line: 1,
        text,
    }]
}

fn configuration(_: &str, source: &str) -> Vec<Text> {
    vec![Text {
        area: Area::Configuration,
        line: 1,
        text: without_code(source),
    }]
}

/// Removes the text between backticks, including a link's target if it is code.
fn without_code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (n, part) in text.split('`').enumerate() {
        if n % 2 == 0 {
            out.push_str(part);
        } else {
            out.push_str("``");
            out.extend(part.chars().filter(|c| *c == '\n'));
        }
    }
    out
}

fn rust(path: &str, source: &str) -> Vec<Text> {
    let test_file = path.contains("/tests/") || path.ends_with("/tests.rs") || path.contains("/benches/");
    // By convention a file's tests are its last module.
    let tests_begin = if test_file {
        0
    } else {
        source.find("#[cfg(test)]\nmod tests {").unwrap_or(source.len())
    };
    let mut texts = Vec::new();
    let mut comment: Option<Text> = None;
    let (mut at, mut line) = (0, 1);
    for token in tokenize(source, FrontmatterAllowed::No) {
        let token_text = &source[at..at + token.len as usize];
        match token.kind {
            TokenKind::LineComment { doc_style } | TokenKind::BlockComment { doc_style, .. } => {
                let help = doc_style.is_some() && is_help(path, token_text);
                let area = if help { Area::Help } else { Area::Comments };
                let text = without_code(token_text.trim_start_matches(['/', '!']));
                match &mut comment {
                    Some(open) if open.area == area => {
                        open.text.push_str(&text);
                    }
                    _ => {
                        texts.extend(comment.take());
                        comment = Some(Text { area, line, text });
                    }
                }
            }
            TokenKind::Whitespace => {
                if let Some(open) = &mut comment {
                    open.text.extend(token_text.chars().filter(|c| *c == '\n'));
                }
            }
            kind => {
                texts.extend(comment.take());
                let literal = matches!(
                    kind,
                    TokenKind::Literal {
                        kind: LiteralKind::Str { .. } | LiteralKind::RawStr { .. },
                        ..
                    }
                );
                if literal && at < tests_begin && token_text.contains(' ') && !test_file {
                    let area = if path.starts_with("imds-observer/src/") {
                        Area::Messages
                    } else {
                        Area::Tools
                    };
                    texts.push(Text {
                        area,
                        line,
                        text: without_code(token_text),
                    });
                }
            }
        }
        at += token.len as usize;
        line += token_text.matches('\n').count();
    }
    texts.extend(comment);
    texts
}

/// clap's help texts, and the detectors' manual pages.
fn is_help(path: &str, comment: &str) -> bool {
    path.starts_with("imds-observer/src/cli/") && comment.starts_with("///")
        || path.starts_with("imds-observer/src/detectors/") && comment.starts_with("//!")
}

#[cfg(test)]
mod tests {
    use super::{Area, List, reader};

    fn words(path: &str, source: &str) -> Vec<(Area, String)> {
        let list =
            List::parse("[limits]\n[words]\n'told' = ''\n'g[ia]ves? up' = ''\n'stands?' = ''\n[spelling]\n").unwrap();
        let texts = reader(path).unwrap()(path, source);
        let mut hits = Vec::new();
        for text in &texts {
            list.check(path, text, &mut hits);
        }
        let found = hits
            .into_iter()
            .map(|hit| (hit.area, format!("{} {}", hit.place, hit.word)));
        let mut found: Vec<_> = found.collect();
        found.sort();
        found
    }

    #[test]
    fn markdown_is_checked_without_its_code() {
        let found = words("docs/a.md", "one told\n```\ntold\n```\n`told` gives\nup\n");
        assert_eq!(
            found,
            [
                (Area::Docs, "docs/a.md:1 told".to_owned()),
                (Area::Docs, "docs/a.md:5 gives\nup".to_owned())
            ]
        );
    }

    #[test]
    fn literals_and_comments_have_areas_of_their_own() {
        let source = "/// It gives\n/// up.\nfn a() { b(\"is told\", \"told\", 'x'); } // a stand-in\n";
        let by_area = |path| {
            words(path, source)
                .into_iter()
                .map(|(area, _)| area)
                .collect::<Vec<_>>()
        };
        assert_eq!(by_area("imds-observer/src/cli/a.rs"), [Area::Help, Area::Messages]);
        assert_eq!(by_area("imds-observer/src/a.rs"), [Area::Messages, Area::Comments]);
        assert_eq!(by_area("xtask/src/a.rs"), [Area::Tools, Area::Comments]);
        assert_eq!(by_area("imds-observer/tests/a.rs"), [Area::Comments]);
    }

    #[test]
    fn strings_of_a_files_tests_are_not_messages() {
        let source = "#[cfg(test)]\nmod tests {\n    const A: &str = \"is told\";\n}\n";
        assert_eq!(words("imds-observer/src/a.rs", source), []);
    }
}
