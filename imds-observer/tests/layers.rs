//! Checks that the library's modules are acyclic layers. Each module may use only modules before it in [`LAYERS`]; tests may use all
//! modules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens as _;
use syn::{Attribute, Item};

/// The modules of `src`, from the ground up. ARCHITECTURE.md describes each.
const LAYERS: &[&str] = &[
    // Independent of IMDS.
    "memo",
    "quantity",
    "stop",
    "wipe",
    "http",
    "redact",
    // Data that leaves the program.
    "record",
    "filter",
    // Facts about requests and about this host.
    "imds",
    "host_facts",
    "host",
    "sandbox",
    // From events to findings.
    "event",
    "flow",
    "exchange",
    "attribution",
    "detectors",
    "hosts",
    "summary",
    // Sources of events.
    "source",
    "bpf",
    "live",
    // Outputs of records.
    "report",
    "sinks",
    "metrics",
    "watch",
    "preflight",
    "story",
    "doctor",
    "exec",
    // The parts that connect all others.
    "config",
    "pipeline",
    "cli",
];

#[test]
fn each_module_has_a_layer() {
    let modules: BTreeSet<String> = sources().into_iter().map(|source| source.module).collect();
    let layers: BTreeSet<String> = LAYERS.iter().map(|layer| (*layer).to_owned()).collect();
    assert_eq!(layers.len(), LAYERS.len(), "a module is in the list twice");
    assert_eq!(modules, layers);
}

#[test]
fn each_module_uses_only_layers_below_it() {
    let rank = |module: &str| LAYERS.iter().position(|layer| *layer == module);
    let mut upward = Vec::new();
    for source in sources() {
        let own = rank(&source.module);
        let text = fs::read_to_string(&source.path).unwrap();
        for used in used_modules(&text, source.depth) {
            if used != source.module && rank(&used) >= own {
                upward.push(format!("{}: {} uses {used}", source.path.display(), source.module));
            }
        }
    }
    assert!(
        upward.is_empty(),
        "imports of modules that are above:\n{}",
        upward.join("\n")
    );
}

#[test]
fn the_map_has_each_module() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md")).unwrap();
    let missing: Vec<_> = LAYERS
        .iter()
        .filter(|layer| !map.contains(&format!("`{layer}/`")) && !map.contains(&format!("`{layer}.rs`")))
        .collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md does not describe {missing:?}");
}

#[test]
fn imports_are_found_in_every_form() {
    let text = "
        //! Not in comments: [`crate::cli`].
        use crate::record::{Code, Finding};
        use crate::{imds as protocol, redact::{self, text}};
        use super::super::sinks::Sink;
        fn f() -> crate::flow::Seq { super::super::http::parse(); anyhow::bail!(\"{}\", crate::host::name()) }
        #[cfg(test)]
        mod tests { use crate::pipeline::run; }
        #[cfg(all(test, live))]
        use crate::watch;
    ";
    let used: Vec<_> = used_modules(text, 2).into_iter().collect();
    assert_eq!(used, ["flow", "host", "http", "imds", "record", "redact", "sinks"]);
}

struct Source {
    path: PathBuf,
    /// First component of the path below `src`.
    module: String,
    /// Number of `super::` that lead to the crate's root.
    depth: usize,
}

/// All files of the library, except its root and files that only tests compile.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut directories = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let inside: Vec<_> = path
                .strip_prefix(&root)
                .unwrap()
                .iter()
                .map(|part| part.to_str().unwrap().trim_end_matches(".rs").to_owned())
                .collect();
            let tests = inside.iter().any(|part| part == "tests");
            if tests || ["lib", "main"].contains(&inside[0].as_str()) {
                continue;
            }
            let depth = inside.len() - usize::from(inside.last().is_some_and(|name| name == "mod"));
            let module = inside.into_iter().next().unwrap();
            sources.push(Source { path, module, depth });
        }
    }
    assert!(sources.len() > 100, "{} files below {}", sources.len(), root.display());
    sources
}

/// The crate's modules that the file uses outside tests. `depth`: see [`Source::depth`].
fn used_modules(text: &str, depth: usize) -> BTreeSet<String> {
    let mut file = syn::parse_file(text).unwrap();
    without_tests(&mut file.items);
    let mut used = BTreeSet::new();
    search(file.into_token_stream(), depth, &mut used);
    used
}

fn without_tests(items: &mut Vec<Item>) {
    items.retain_mut(|item| {
        let attributes = match item {
            Item::Mod(module) => {
                if let Some((_, inner)) = &mut module.content {
                    without_tests(inner);
                }
                &module.attrs
            }
            Item::Use(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            _ => return true,
        };
        !attributes.iter().any(only_for_tests)
    });
}

/// `#[cfg(test)]`, `#[cfg(all(test, ...))]`.
fn only_for_tests(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") && {
        let condition = attribute.meta.to_token_stream().to_string().replace(' ', "");
        condition.starts_with("cfg(test") || condition.starts_with("cfg(all(test")
    }
}

/// Finds paths that begin at the crate's root: `crate::MODULE`, `crate::{MODULE, ...}`, and the same after `depth` times `super::`.
fn search(tokens: TokenStream, depth: usize, used: &mut BTreeSet<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut supers = 0;
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token {
            TokenTree::Group(group) => search(group.stream(), depth, used),
            TokenTree::Ident(word) => {
                supers = if word == "super" { supers + 1 } else { 0 };
                let path = tokens.get(at..at + 2).is_some_and(is_path_separator);
                if path {
                    at += 2;
                }
                if path && (word == "crate" || supers == depth) {
                    match tokens.get(at) {
                        Some(TokenTree::Ident(module)) => _ = used.insert(module.to_string()),
                        Some(TokenTree::Group(group)) => used.extend(first_names(group.stream())),
                        _ => {}
                    }
                }
            }
            _ => supers = 0,
        }
    }
}

fn is_path_separator(tokens: &[TokenTree]) -> bool {
    tokens
        .iter()
        .all(|token| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ':'))
}

/// The first name of each part between commas.
fn first_names(tokens: TokenStream) -> Vec<String> {
    let mut names = Vec::new();
    let mut begins = true;
    for token in tokens {
        match token {
            TokenTree::Ident(name) if begins => {
                names.push(name.to_string());
                begins = false;
            }
            TokenTree::Punct(punct) if punct.as_char() == ',' => begins = true,
            _ => {}
        }
    }
    names
}
