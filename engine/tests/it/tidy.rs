//! Keeps the house as it was drawn: what the compiler and its lints cannot see.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lines that a file may have.
const LINES_MAX: usize = 500;

/// Files that may be longer, each with its reason.
const LONGER: [(&str, &str); 0] = [];

/// What lies in the top folder, besides dotfiles and what `.gitignore` names.
const TOP: [&str; 10] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "actors",
    "benchmarks",
    "deploy",
    "docs",
    "engine",
    "udfs",
];

/// The crates, each with those of ours that it may name. Arrows only go down.
const ARROWS: [(&str, &[&str]); 5] = [
    ("actors/policy", &[]),
    ("udfs", &[]),
    ("actors", &["foreshard-policy", "foreshard-udfs"]),
    ("engine", &["foreshard-policy", "foreshard-udfs", "foreshard-actors"]),
    ("benchmarks", &["foreshard-policy", "foreshard-udfs", "foreshard-actors", "foreshard"]),
];

/// What the tests of a crate may name besides: the engine's are judged by the judge of `exact`.
const ARROWS_OF_TESTS: [(&str, &str); 1] = [("engine", "foreshard-benchmarks")];

/// Words that have no place where things are decided.
const IMPURE_WORDS: [&str; 9] = [
    "tokio",
    "ractor",
    "futures",
    "arrow",
    "datafusion",
    "async",
    "SystemTime",
    "TcpStream",
    "unsafe",
];

/// Paths that have no place there either.
const IMPURE_PATHS: [&str; 7] =
    ["std::fs", "std::thread", "std::net", "std::process", "std::env", "Instant::now", "rand::rng"];

/// Endings of the files that people wrote as text.
const TEXTS: [&str; 12] =
    ["rs", "toml", "md", "yml", "yaml", "sh", "sql", "svg", "txt", "proto", "service", "slt"];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// First components that `.gitignore` names, as `/name` or `/start*`.
fn ignored(name: &str) -> bool {
    let patterns = fs::read_to_string(top().join(".gitignore")).unwrap();
    patterns.lines().filter_map(|line| line.strip_prefix('/')).any(|pattern| {
        match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        }
    })
}

/// Every file of the repository by its path from the top, without dotfiles and build outputs.
fn files() -> BTreeMap<String, PathBuf> {
    let top = top();
    let mut open = vec![top.clone()];
    let mut found = BTreeMap::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with('.') || (folder == top && ignored(name)) {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else {
                let below = path.strip_prefix(&top).unwrap().to_str().unwrap().replace('\\', "/");
                found.insert(below, path);
            }
        }
    }
    assert!(found.len() > 100, "only {} files below {}", found.len(), top.display());
    found
}

/// The files with one of these endings, and their texts.
fn texts(endings: &[&str]) -> Vec<(String, String)> {
    let ends = |name: &str| name.rsplit_once('.').is_some_and(|(_, end)| endings.contains(&end));
    let found = files().into_iter().filter(|(name, _)| ends(name));
    found.map(|(name, path)| (name, fs::read_to_string(path).unwrap())).collect()
}

fn manifest(krate: &str) -> toml::Table {
    fs::read_to_string(top().join(krate).join("Cargo.toml")).unwrap().parse().unwrap()
}

#[test]
fn every_file_says_what_lives_in_it() {
    let silent: Vec<String> = texts(&["rs"])
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//! ") || text.lines().next() == Some("//! "))
        .map(|(name, _)| format!("{name}: the first line must be a //! sentence"))
        .collect();
    assert!(silent.is_empty(), "{}", silent.join("\n"));
}

#[test]
fn every_file_fits_on_a_shelf() {
    let too_long: Vec<String> = texts(&["rs"])
        .into_iter()
        .map(|(name, text)| (text.lines().count(), name))
        .filter(|(lines, name)| *lines > LINES_MAX && !LONGER.iter().any(|(long, _)| long == name))
        .map(|(lines, name)| format!("{name}: {lines} lines, at most {LINES_MAX}"))
        .collect();
    assert!(too_long.is_empty(), "{}", too_long.join("\n"));
    for (name, reason) in LONGER {
        assert!(files().contains_key(name), "{name} is granted more lines ({reason}) but is gone");
    }
}

#[test]
fn decisions_touch_no_clock_no_disk_no_thread_and_no_actor() {
    let mut impure = vec![];
    for (name, text) in texts(&["rs"]) {
        if !name.starts_with("actors/policy/src/") {
            continue;
        }
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let words: BTreeSet<&str> =
                line.split(|letter: char| !letter.is_alphanumeric() && letter != '_').collect();
            let found = IMPURE_WORDS.iter().filter(|word| words.contains(**word));
            let found = found.chain(IMPURE_PATHS.iter().filter(|path| line.contains(**path)));
            impure.extend(found.map(|what| format!("{name}: `{what}` in `{}`", line.trim())));
        }
    }
    assert!(impure.is_empty(), "does not belong in a decision:\n{}", impure.join("\n"));
}

#[test]
fn the_top_folder_holds_what_was_agreed_and_nothing_else() {
    let names: BTreeSet<String> = fs::read_dir(top())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.') && !ignored(name))
        .collect();
    assert_eq!(names, TOP.iter().map(|name| (*name).to_owned()).collect());
}

#[test]
fn arrows_between_crates_only_go_down() {
    let members: BTreeSet<String> = manifest("")["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(members, ARROWS.iter().map(|(krate, _)| (*krate).to_owned()).collect());
    for (krate, below) in ARROWS {
        let manifest = manifest(krate);
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(named) = manifest.get(kind).and_then(toml::Value::as_table) else { continue };
            for name in named.keys().filter(|name| name.starts_with("foreshard")) {
                let is_for_tests =
                    kind == "dev-dependencies" && ARROWS_OF_TESTS.contains(&(krate, name.as_str()));
                let is_below = below.contains(&name.as_str());
                assert!(is_below || is_for_tests, "{krate} must not depend on {name}");
            }
        }
    }
}

#[test]
fn every_crate_inherits_lints_edition_and_licence() {
    for (krate, _) in ARROWS {
        let manifest = manifest(krate);
        let inherits = |table: &str, key: &str| {
            let value = manifest.get(table).and_then(|table| table.get(key));
            match value {
                Some(toml::Value::Table(value)) => value.get("workspace").is_some(),
                Some(value) => key == "workspace" && value.as_bool() == Some(true),
                None => false,
            }
        };
        assert!(inherits("lints", "workspace"), "{krate}: [lints] workspace = true is missing");
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            assert!(inherits("package", key), "{krate}: {key}.workspace = true is missing");
        }
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(named) = manifest.get(kind).and_then(toml::Value::as_table) else { continue };
            for (name, source) in named {
                let is_shared = source.get("workspace").and_then(toml::Value::as_bool);
                assert_eq!(is_shared, Some(true), "{krate}: {name} has a version of its own");
            }
        }
    }
}

#[test]
fn nothing_of_one_workplace_is_left_in_the_house() {
    // Put together here, or this file would be the first one found.
    let needles = [["PIN", "-BEGIN"].concat(), ["TEST", "UTIL"].concat(), ["/wo", "rk/"].concat()];
    let mut left = vec![];
    for (name, text) in texts(&TEXTS) {
        for (position, line) in text.lines().enumerate() {
            let found = needles.iter().filter(|needle| line.contains(needle.as_str()));
            left.extend(found.map(|needle| format!("{name}:{}: {needle}", position + 1)));
        }
    }
    assert!(left.is_empty(), "{}", left.join("\n"));
}

#[test]
fn no_test_is_switched_off() {
    let ignore = ["#[ig", "nore"].concat();
    let off: Vec<String> = texts(&["rs"])
        .into_iter()
        .filter(|(_, text)| text.lines().any(|line| line.trim_start().starts_with(&ignore)))
        .map(|(name, _)| name)
        .collect();
    assert!(off.is_empty(), "tests that nobody runs: {}", off.join(", "));
}

#[test]
fn every_file_and_test_that_the_manual_names_is_there() {
    let sources: String = texts(&["rs"]).into_iter().map(|(_, text)| text).collect();
    let mut missing = vec![];
    for (name, text) in texts(&["md"]) {
        let folder = Path::new(&name).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
            let target = link.0.split('#').next().unwrap();
            if !target.is_empty()
                && !target.contains("://")
                && !top().join(&folder).join(target).exists()
            {
                missing.push(format!("{name}: no file {target}"));
            }
        }
        // A name in backquotes with three words or more is the name of a test.
        for quoted in text.split('`').skip(1).step_by(2) {
            let is_name = |letter: char| letter.is_ascii_lowercase() || letter == '_';
            let is_test = quoted.chars().all(is_name) && quoted.matches('_').count() >= 4;
            if is_test && !sources.contains(&format!("fn {quoted}(")) {
                missing.push(format!("{name}: no test {quoted}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
