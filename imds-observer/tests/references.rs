//! Checks that the files that documentation and comments name exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Suffixes of file names that refer to this repository.
const ENDINGS: &[&str] = &[".rs", ".md", ".toml", ".sh", ".py", ".sql"];
/// Directories that paths in texts may be relative to, besides the directory of the text.
const ROOTS: &[&str] = &[
    "",
    "docs",
    "imds-observer",
    "imds-observer/src",
    "imds-observer/tests",
    "imds-observer-ebpf/src",
    "imds-observer-lab/src",
];

#[test]
fn files_that_documents_name_exist() {
    let tree = Tree::read();
    // The changelog names files of earlier versions.
    let documents: Vec<_> = tree
        .with_ending(".md")
        .filter(|name| !name.ends_with("CHANGELOG.md"))
        .collect();
    assert!(documents.len() > 20, "{} documents", documents.len());
    let mut missing = Vec::new();
    let mut names = 0;
    for document in documents {
        let text = fs::read_to_string(tree.root.join(document)).unwrap();
        for name in quoted(&text).chain(linked(&text)).filter(|name| is_reference(name)) {
            names += 1;
            if !tree.has(document, name) {
                missing.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert!(names > 100, "{names} names of files");
    assert!(missing.is_empty(), "no such files:\n{}", missing.join("\n"));
}

#[test]
fn files_that_comments_name_exist() {
    let tree = Tree::read();
    let mut missing = Vec::new();
    let mut names = 0;
    for source in tree.with_ending(".rs") {
        let text = fs::read_to_string(tree.root.join(source)).unwrap();
        for comment in text.lines().filter_map(|line| line.trim_start().strip_prefix("//")) {
            let words = comment.split(|character: char| character.is_whitespace() || "`()[],;:\"".contains(character));
            for word in words.filter(|word| word.contains('/') && is_reference(word)) {
                names += 1;
                if !tree.has(source, word) {
                    missing.push(format!("{}: {word}", source.display()));
                }
            }
        }
    }
    assert!(names > 20, "{names} names of files");
    assert!(missing.is_empty(), "no such files:\n{}", missing.join("\n"));
}

/// mdBook omits pages that docs/SUMMARY.md doesn't list, which breaks links to them.
#[test]
fn the_book_lists_every_page() {
    let tree = Tree::read();
    let summary = fs::read_to_string(tree.root.join("docs/SUMMARY.md")).unwrap();
    let listed: BTreeSet<&str> = linked(&summary).collect();
    let pages: Vec<&str> = tree
        .with_ending(".md")
        .filter_map(|page| page.strip_prefix("docs").ok()?.to_str())
        .filter(|page| *page != "SUMMARY.md")
        .collect();
    assert!(pages.len() > 40, "{} pages", pages.len());
    let missing: Vec<_> = pages.iter().filter(|page| !listed.contains(**page)).collect();
    assert!(missing.is_empty(), "add to docs/SUMMARY.md: {missing:?}");
}

#[test]
fn placeholders_addresses_and_absolute_paths_are_no_references() {
    for name in ["bpf/kernel.rs", "table.sql", "../docs/limits.md", "record/mod.rs"] {
        assert!(is_reference(name), "{name}");
    }
    for name in [
        "imds-observer/src/detectors/NAME.rs",
        "/etc/imds-observer.toml",
        "https://example.com/a.md",
        "a b.rs",
        "*.rs",
        ".toml",
    ] {
        assert!(!is_reference(name), "{name}");
    }
}

/// Relative paths of all files, except build output.
struct Tree {
    root: PathBuf,
    files: BTreeSet<PathBuf>,
}

impl Tree {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
        let mut files = BTreeSet::new();
        let mut directories = vec![root.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_symlink() || path.ends_with("target") || path.ends_with(".git") {
                    continue;
                }
                if path.is_dir() {
                    directories.push(path);
                } else {
                    files.insert(path.strip_prefix(&root).unwrap().to_owned());
                }
            }
        }
        Self { root, files }
    }

    fn with_ending(&self, ending: &'static str) -> impl Iterator<Item = &PathBuf> {
        self.files
            .iter()
            .filter(move |file| file.to_str().is_some_and(|name| name.ends_with(ending)))
    }

    /// Whether this file exists. A name without a directory matches any file with this name.
    fn has(&self, text: &Path, name: &str) -> bool {
        let beside = text.parent().unwrap();
        // Paths in another crate's `src` may be relative to that directory.
        let own_source = beside.ancestors().find(|directory| directory.ends_with("src"));
        let roots = ROOTS.iter().map(Path::new).chain([beside]).chain(own_source);
        let relative = roots
            .map(|root| self.root.join(root).join(name))
            .any(|path| path.exists());
        relative || !name.contains('/') && self.files.iter().any(|file| file.ends_with(name))
    }
}

fn is_reference(name: &str) -> bool {
    let placeholder = |part: &str| {
        let stem = part.split('.').next().unwrap_or_default();
        stem.len() > 1
            && stem
                .chars()
                .all(|character| character.is_ascii_uppercase() || character == '_')
    };
    ENDINGS
        .iter()
        .any(|ending| name.len() > ending.len() && name.ends_with(ending))
        && name
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || "/._-".contains(character))
        && !name.starts_with('/')
        && !name.split('/').any(placeholder)
}

/// Texts between backquotes, without code blocks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|part| part.split('`').skip(1).step_by(2))
}

/// Targets of links, without fragments.
fn linked(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| {
        let (target, _) = rest.split_once(')')?;
        target.split('#').next()
    })
}
