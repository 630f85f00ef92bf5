//! The whole repository is as its readers may expect it: what no compiler looks at.
#![expect(clippy::unwrap_used, reason = "the helpers of a test fail with it")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Longest source file (lines): longer ones hold more than one idea.
const MAX_LINES: usize = 600;
/// In two parts, or this file would break the rule that it checks.
const UNSAFE: &str = concat!("un", "safe");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().canonicalize().unwrap()
}

/// The text files of the repository with one of these extensions, by their path from the root.
fn files(extensions: &[&str]) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                if name != "target" && !name.to_string_lossy().starts_with('.') {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extensions.iter().any(|it| extension == *it)) {
                let text = fs::read_to_string(&path).unwrap();
                found.insert(path.strip_prefix(root()).unwrap().to_owned(), text);
            }
        }
    }
    assert!(!found.is_empty(), "{extensions:?} in {}", root().display());
    found
}

/// Fails with all of `findings`, one per line.
fn expect_none(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

/// The lines of a document outside code, numbered from 1, without what stands in `code`.
fn prose(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(n, line)| {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
            return None;
        }
        // Every second part between backquotes is code.
        (!in_code).then(|| (n + 1, line.split('`').step_by(2).collect()))
    })
}

/// The names by which the headings of a document are linked to: lower case, hyphens for spaces, no punctuation.
fn anchors(text: &str) -> Vec<String> {
    let mut in_code = false;
    let headings = text.lines().filter(|line| {
        in_code ^= line.trim_start().starts_with("```");
        !in_code && line.starts_with('#')
    });
    let name = |heading: &str| {
        let letters = heading.trim_start_matches('#').trim().to_lowercase();
        letters
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    headings.map(name).collect()
}

/// The targets of `[text](target)` in a line.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

#[test]
fn every_source_file_says_first_what_it_is_for() {
    let silent: Vec<String> = files(&["rs"])
        .iter()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(path, _)| format!("{}: does not open with `//!`", path.display()))
        .collect();
    expect_none(&silent);
}

#[test]
fn no_source_file_is_longer_than_a_reader_can_hold() {
    let long: Vec<String> = files(&["rs"])
        .iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(path, lines)| format!("{}: {lines} lines, {MAX_LINES} are allowed", path.display()))
        .collect();
    expect_none(&long);
}

#[test]
fn unsafe_code_stands_in_the_ring_and_in_files_named_sys_only() {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut strays = Vec::new();
    for (path, text) in files(&["rs"]) {
        if path.starts_with("engine/src/ring") || path.ends_with("sys.rs") {
            continue;
        }
        for (n, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.split(|c| !is_word(c)).any(|word| word == UNSAFE) {
                strays.push(format!("{}:{}: {UNSAFE} code", path.display(), n + 1));
            }
        }
    }
    expect_none(&strays);
}

#[test]
fn nothing_is_indented_with_tabs_or_ends_in_spaces() {
    let mut findings = Vec::new();
    for (path, text) in files(&["rs", "toml", "md", "json"]) {
        for (n, line) in text.lines().enumerate() {
            if line.contains('\t') || line.ends_with(' ') {
                findings.push(format!("{}:{}: a tab, or a space at the end", path.display(), n + 1));
            }
        }
    }
    expect_none(&findings);
}

#[test]
fn every_link_between_the_documents_leads_somewhere() {
    let documents = files(&["md"]);
    let mut dead = Vec::new();
    for (path, text) in &documents {
        for (n, line) in prose(text) {
            for link in links(&line) {
                if link.contains("://") || link.starts_with("mailto:") {
                    continue;
                }
                let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
                let target = match file {
                    "" => root().join(path),
                    file => root().join(path).with_file_name(file),
                };
                let leads = target.canonicalize().is_ok_and(|target| {
                    let known = target.strip_prefix(root()).ok().and_then(|target| documents.get(target));
                    anchor.is_empty() || known.is_some_and(|text| anchors(text).iter().any(|it| it == anchor))
                });
                if !leads {
                    dead.push(format!("{}:{n}: `{link}` leads nowhere", path.display()));
                }
            }
        }
    }
    expect_none(&dead);
}

#[test]
fn the_checks_of_the_documents_see_what_they_are_for() {
    let text = "# A `b`: c-d\n```\n# no heading [x](y)\n```\nsee [a](b.md#c), `[d](e)` and [f](#g)\n";
    assert_eq!(anchors(text), ["a-b-c-d"]);
    let lines: Vec<String> = prose(text).map(|(_, line)| line).collect();
    assert_eq!(lines.iter().flat_map(|line| links(line)).collect::<Vec<_>>(), ["b.md#c", "#g"]);
}
