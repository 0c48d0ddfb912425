//! The rules of ARCHITECTURE.md, enforced on manifests and sources.
//!
//! What may depend on what, and which modules stay pure: no tokio, no Kafka client, no file system,
//! no clock, no iteration in hash order, so that a test or a simulator can drive them and the same
//! input always gives the same output. The rules read code with comments, strings and test modules
//! taken out. Each detector is itself tested on samples at the end of this file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which of the workspace's crates each may use. A crate not named here fails the test: a new one
/// has to be given its place.
const MAY_USE: &[(&str, &[&str])] = &[
    (FEATURES, &[]),
    ("finlake-schemas", &[]),
    ("finlake-state", &[]),
    ("finlake-devkafka", &[]),
    ("finlake-topology", &["finlake-state"]),
    ("finlake-market", &["finlake-schemas"]),
    (
        "finlake-pipeline",
        &["finlake-schemas", "finlake-market", "finlake-topology"],
    ),
    ("finlake-lakehouse", &["finlake-schemas"]),
    (
        "finlake",
        &[
            "finlake-schemas",
            "finlake-state",
            "finlake-devkafka",
            "finlake-topology",
            "finlake-market",
            "finlake-pipeline",
            "finlake-lakehouse",
            "finlake-reconcile",
        ],
    ),
    (
        "finlake-reconcile",
        &["finlake-schemas", "finlake-market", "finlake-lakehouse"],
    ),
];

/// Holds no code: one feature set of the third-party crates for every way of building.
const FEATURES: &str = "finlake-features";

/// Files and folders that must stay pure. Each has to exist: a rename must not end a rule.
const PURE: &[&str] = &[
    "market/src",
    "lakehouse/src/bitemporal.rs",
    "lakehouse/src/plan.rs",
    "topology/src/task.rs",
    "devkafka/src/core",
    "reconcile/src/bisect.rs",
    "reconcile/src/books.rs",
    "reconcile/src/bronze.rs",
    "reconcile/src/changes.rs",
    "reconcile/src/columns.rs",
    "reconcile/src/counts.rs",
    "reconcile/src/drift.rs",
    "reconcile/src/findings.rs",
    "reconcile/src/gold.rs",
    "reconcile/src/ledger.rs",
    "reconcile/src/rules.rs",
    "reconcile/src/silver.rs",
    "reconcile/src/trades.rs",
    "reconcile/src/versions.rs",
];

/// Words that may not stand in a pure module, each with the reason.
const IMPURE: &[(&str, &str)] = &[
    ("tokio", "runtime"),
    ("async_std", "runtime"),
    ("async fn", "runtime"),
    ("rdkafka", "Kafka client"),
    ("rdkafka_sys", "Kafka client"),
    ("std::fs", "file system"),
    ("std::net", "network"),
    ("std::env", "environment"),
    ("std::process", "process"),
    ("std::thread", "thread"),
    ("File::open", "file system"),
    ("SystemTime::now", "clock"),
    ("Instant::now", "clock"),
    ("UNIX_EPOCH", "clock"),
    ("Utc::now", "clock"),
    ("Timestamp::now", "clock"),
    ("Zoned::now", "clock"),
    ("thread_rng", "randomness"),
    ("rand::rng", "randomness"),
    ("Uuid::new_v4", "randomness"),
    ("RandomState", "randomness"),
];

/// Dependencies a pure crate may not have at all.
const IMPURE_CRATES: &[&str] = &[
    "tokio",
    "rdkafka",
    "rdkafka-sys",
    "rocksdb",
    "reqwest",
    "rand",
];
const PURE_CRATES: &[&str] = &["finlake-market"];

/// Lines a source file may have without its tests.
const MAX_LINES: usize = 700;

/// Types whose iteration order is arbitrary or would change with the hasher.
const HASHED: &[&str] = &[
    "HashMap",
    "HashSet",
    "FxHashMap",
    "FxHashSet",
    "AHashMap",
    "AHashSet",
];
const ITERATES: &[&str] = &[
    ".iter()",
    ".iter_mut()",
    ".keys()",
    ".values()",
    ".values_mut()",
    ".into_iter()",
    ".into_keys()",
    ".into_values()",
    ".drain()",
];

// --- the rules ----------------------------------------------------------------------------------

#[test]
fn crates_use_only_what_lies_below_them() {
    let mut broken = Vec::new();
    for (dir, text) in manifests() {
        let name = package_name(&text).unwrap_or_else(|| panic!("{}: no name", dir.display()));
        let Some((_, allowed)) = MAY_USE.iter().find(|(n, _)| *n == name) else {
            broken.push(format!("{name}: a new crate needs a line in MAY_USE"));
            continue;
        };
        let deps = dependencies(&text);
        for dep in deps.iter().filter(|d| d.starts_with("finlake")) {
            if dep != FEATURES && !allowed.contains(&dep.as_str()) {
                broken.push(format!("{name} uses {dep}: allowed are {allowed:?}"));
            }
        }
        if PURE_CRATES.contains(&name.as_str()) {
            for dep in deps.iter().filter(|d| IMPURE_CRATES.contains(&d.as_str())) {
                broken.push(format!("{name} is pure and uses {dep}"));
            }
        }
    }
    report(&broken);
}

#[test]
fn sources_import_only_what_lies_below_them() {
    let mut broken = Vec::new();
    for (dir, text) in manifests() {
        let name = package_name(&text).unwrap_or_default();
        let allowed: &[&str] = MAY_USE
            .iter()
            .find(|(n, _)| *n == name)
            .map_or(&[], |(_, allowed)| allowed);
        for file in rust_files(&dir.join("src")) {
            let code = production_code(&read(&file));
            for used in finlake_paths(&code) {
                let used = used.replace('_', "-");
                if used != name && !allowed.contains(&used.as_str()) {
                    broken.push(format!("{}: {name} uses {used}", show(&file)));
                }
            }
        }
    }
    report(&broken);
}

#[test]
fn pure_modules_are_pure() {
    let mut broken = Vec::new();
    for place in PURE {
        let path = root().join(place);
        let files = if path.is_dir() {
            rust_files(&path)
        } else {
            vec![path]
        };
        let files: Vec<_> = files.into_iter().filter(|f| f.is_file()).collect();
        if files.is_empty() {
            broken.push(format!("{place}: not there; move the rule with the module"));
        }
        for file in files {
            for (line, what) in impurities(&production_code(&read(&file))) {
                broken.push(format!("{}:{line}: {what}", show(&file)));
            }
        }
    }
    report(&broken);
}

#[test]
fn no_file_is_two_things_at_once() {
    let mut broken = Vec::new();
    for file in all_sources() {
        let lines = lines_without_tests(&read(&file));
        if lines > MAX_LINES {
            broken.push(format!("{}: {lines} lines, split it", show(&file)));
        }
    }
    report(&broken);
}

#[test]
fn modules_say_what_they_are_for() {
    let mut broken = Vec::new();
    for file in all_sources() {
        let text = read(&file);
        if !text.trim_start().starts_with("//!") {
            broken.push(format!("{}: opens without a doc comment", show(&file)));
        }
    }
    report(&broken);
}

fn report(broken: &[String]) {
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

// --- the workspace ------------------------------------------------------------------------------

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn show(file: &Path) -> String {
    let file = file.strip_prefix(root()).unwrap_or(file);
    file.display().to_string()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// Every crate of the workspace: its folder and its manifest.
fn manifests() -> Vec<(PathBuf, String)> {
    let text = read(&root().join("Cargo.toml"));
    let members = text
        .lines()
        .find_map(|l| l.strip_prefix("members = ["))
        .expect("the workspace's members on one line");
    let mut dirs = vec![root().to_path_buf()];
    for member in members.trim_end_matches(']').split(',') {
        dirs.push(root().join(member.trim().trim_matches('"')));
    }
    dirs.into_iter()
        .map(|dir| (dir.clone(), read(&dir.join("Cargo.toml"))))
        .collect()
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else {
        return found;
    };
    let mut entries: Vec<_> = entries.filter_map(|e| e.ok()).map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

fn all_sources() -> Vec<PathBuf> {
    manifests()
        .iter()
        .flat_map(|(dir, _)| rust_files(&dir.join("src")))
        // `foo/tests.rs`, the test half of a module.
        .filter(|f| f.file_stem().is_none_or(|stem| stem != "tests"))
        .collect()
}

// --- reading manifests --------------------------------------------------------------------------

fn package_name(manifest: &str) -> Option<String> {
    let mut lines = manifest.lines().skip_while(|l| l.trim() != "[package]");
    let line = lines.find(|l| l.starts_with("name"))?;
    Some(line.split('"').nth(1)?.to_owned())
}

/// Names under `[dependencies]` and `[build-dependencies]`; dev-dependencies may be anything.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            inside = (section.ends_with("dependencies")
                && !section.ends_with("dev-dependencies")
                && !section.starts_with("workspace"))
                || section == "dependencies";
            // [dependencies.name]
            if let Some((table, name)) = section.rsplit_once('.')
                && table.ends_with("dependencies")
                && !table.ends_with("dev-dependencies")
                && !table.starts_with("workspace")
            {
                found.insert(name.to_owned());
            }
        } else if inside && !line.starts_with('#') {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
            if !name.is_empty() {
                found.insert(name.to_owned());
            }
        }
    }
    found
}

// --- reading sources ----------------------------------------------------------------------------

/// The source with comments, string and character literals blanked out and `#[cfg(test)]` items
/// removed; lines keep their numbers.
fn production_code(source: &str) -> String {
    without_test_items(&blank(source))
}

fn lines_without_tests(source: &str) -> usize {
    let code = blank(source);
    let kept = without_test_items(&code);
    // Lines that the removal of test items emptied do not count.
    let removed = code
        .lines()
        .zip(kept.lines())
        .filter(|(before, after)| !before.trim().is_empty() && after.trim().is_empty())
        .count();
    source.lines().count() - removed
}

/// Blanks comments and literals, keeping line breaks.
fn blank(source: &str) -> String {
    let text: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut i = 0;
    let starts = |i: usize, s: &str| {
        s.chars()
            .enumerate()
            .all(|(k, c)| text.get(i + k) == Some(&c))
    };
    let erase = |out: &mut String, c: char| out.push(if c == '\n' { '\n' } else { ' ' });
    while i < text.len() {
        if starts(i, "//") {
            while i < text.len() && text[i] != '\n' {
                erase(&mut out, text[i]);
                i += 1;
            }
        } else if starts(i, "/*") {
            let mut depth = 0;
            while i < text.len() {
                if starts(i, "/*") {
                    depth += 1;
                } else if starts(i, "*/") {
                    depth -= 1;
                }
                let step = if starts(i, "/*") || starts(i, "*/") {
                    2
                } else {
                    1
                };
                for _ in 0..step {
                    if i < text.len() {
                        erase(&mut out, text[i]);
                    }
                    i += 1;
                }
                if depth == 0 {
                    break;
                }
            }
        } else if let Some(hashes) = raw_string(&text, i) {
            // r"…", r#"…"#, br"…"
            while text[i] != '"' {
                erase(&mut out, text[i]);
                i += 1;
            }
            let close = format!("\"{}", "#".repeat(hashes));
            erase(&mut out, text[i]);
            i += 1;
            while i < text.len() && !starts(i, &close) {
                erase(&mut out, text[i]);
                i += 1;
            }
            for _ in 0..close.len() {
                out.push(' ');
                i += 1;
            }
        } else if text[i] == '"' {
            erase(&mut out, text[i]);
            i += 1;
            while i < text.len() && text[i] != '"' {
                let step = if text[i] == '\\' { 2 } else { 1 };
                for _ in 0..step {
                    if i < text.len() {
                        erase(&mut out, text[i]);
                    }
                    i += 1;
                }
            }
            out.push(' ');
            i += 1;
        } else if text[i] == '\'' && char_literal(&text, i).is_some() {
            let end = char_literal(&text, i).unwrap_or(i);
            while i <= end {
                erase(&mut out, text[i]);
                i += 1;
            }
        } else {
            out.push(text[i]);
            i += 1;
        }
    }
    out
}

/// The number of hashes if a raw string starts at `i`.
fn raw_string(text: &[char], i: usize) -> Option<usize> {
    let before_is_word = i > 0 && (text[i - 1].is_alphanumeric() || text[i - 1] == '_');
    let mut at = i;
    if text.get(at) == Some(&'b') || text.get(at) == Some(&'c') {
        at += 1;
    }
    if before_is_word || text.get(at) != Some(&'r') {
        return None;
    }
    at += 1;
    let hashes = text[at..].iter().take_while(|c| **c == '#').count();
    (text.get(at + hashes) == Some(&'"')).then_some(hashes)
}

/// The index of the closing quote if a character literal (not a lifetime) starts at `i`.
fn char_literal(text: &[char], i: usize) -> Option<usize> {
    if text.get(i + 1) == Some(&'\\') {
        let end = text[i + 3..].iter().take(12).position(|c| *c == '\'')?;
        return Some(i + 3 + end);
    }
    (text.get(i + 2) == Some(&'\'')).then_some(i + 2)
}

/// Blanks every item under `#[cfg(test)]`. Expects comments and literals to be blanked.
fn without_test_items(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..at]);
        let item = &rest[at..];
        let mut depth = 0usize;
        let mut end = item.len();
        for (i, c) in item.char_indices().skip("#[cfg(test)]".len()) {
            match c {
                '{' => depth += 1,
                '}' if depth <= 1 => {
                    end = i + 1;
                    break;
                }
                '}' => depth -= 1,
                ';' if depth == 0 => {
                    end = i + 1;
                    break;
                }
                _ => {}
            }
        }
        out.extend(
            item[..end]
                .chars()
                .map(|c| if c == '\n' { '\n' } else { ' ' }),
        );
        rest = &item[end..];
    }
    out.push_str(rest);
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `word` stands in `line` on its own, not as a part of a longer name.
fn contains_word(line: &str, word: &str) -> bool {
    let mut from = 0;
    while let Some(at) = line[from..].find(word) {
        let (start, end) = (from + at, from + at + word.len());
        let before = line[..start].chars().next_back();
        let after = line[end..].chars().next();
        let inside = |c: Option<char>, edge: Option<char>| {
            c.is_some_and(is_word) && edge.is_some_and(is_word)
        };
        if !inside(before, word.chars().next()) && !inside(after, word.chars().next_back()) {
            return true;
        }
        from = end;
    }
    false
}

/// Crates of this project named in the code, as `finlake_x`.
fn finlake_paths(code: &str) -> BTreeSet<String> {
    code.split(|c| !is_word(c))
        .filter(|word| word.starts_with("finlake_") || *word == "finlake")
        .filter(|word| {
            MAY_USE
                .iter()
                .any(|(name, _)| *name == word.replace('_', "-"))
        })
        .map(str::to_owned)
        .collect()
}

/// Lines of pure code that are not, with the reason.
fn impurities(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in code.lines().enumerate() {
        for (word, reason) in IMPURE {
            if contains_word(line, word) {
                found.push((number + 1, format!("{word} ({reason})")));
            }
        }
        // Durations are values; what reads a clock is not. ("SystemTime" alone is a term of the
        // bi-temporal model.)
        for clock in ["SystemTime", "Instant"] {
            if line.contains("std::time") && contains_word(line, clock) {
                found.push((number + 1, format!("std::time::{clock} (clock)")));
            }
        }
        // `use std::{fs, …}`
        if let Some(list) = line.trim().strip_prefix("use std::{") {
            for module in ["fs", "net", "env", "process", "thread"] {
                if contains_word(list, module) {
                    found.push((number + 1, format!("std::{module}")));
                }
            }
        }
    }
    for (number, name) in hash_iterations(code) {
        found.push((number, format!("{name} is iterated in hash order")));
    }
    found
}

/// Iterations over names that are declared with a hashed type in the same file.
fn hash_iterations(code: &str) -> Vec<(usize, String)> {
    let mut hashed: BTreeMap<String, usize> = BTreeMap::new();
    for line in code.lines() {
        if line.trim_start().starts_with("use ") {
            continue;
        }
        // `name: HashMap<…>`, `name: &mut FxHashMap<…>`, `let name = HashMap::new()`
        for typ in HASHED.iter().filter(|t| contains_word(line, t)) {
            let Some(at) = line.find(typ) else { continue };
            let head = line[..at].trim_end();
            let head = head
                .trim_end_matches("mut")
                .trim_end_matches(|c: char| c == '&' || c.is_whitespace());
            let head = head.strip_suffix(':').or_else(|| head.strip_suffix('='));
            let name: Option<String> = head.map(|head| {
                let word: String = head
                    .trim_end()
                    .chars()
                    .rev()
                    .take_while(|c| is_word(*c))
                    .collect();
                word.chars().rev().collect()
            });
            if let Some(name) = name.filter(|n| !n.is_empty()) {
                *hashed.entry(name).or_default() += 1;
            }
        }
    }
    let mut found = Vec::new();
    let lines: Vec<&str> = code.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        // A chain may go on in the next line: `self.bars\n    .iter()`.
        let next = lines.get(number + 1).map_or("", |l| l.trim_start());
        let joined = if next.starts_with('.') {
            format!("{}{next}", line.trim_end())
        } else {
            (*line).to_owned()
        };
        for name in hashed.keys() {
            let calls = ITERATES
                .iter()
                .any(|call| contains_word(&joined, &format!("{name}{call}")));
            let loops = joined.trim_start().starts_with("for ")
                && joined.split(" in ").nth(1).is_some_and(|iterated| {
                    let iterated = iterated.split('{').next().unwrap_or_default().trim();
                    iterated
                        .trim_start_matches(['&', '(', ' '])
                        .trim_start_matches("mut ")
                        .trim_start_matches("self.")
                        == name
                });
            if calls || loops {
                found.push((number + 1, name.clone()));
            }
        }
    }
    found
}

// --- the detectors, on samples ------------------------------------------------------------------

#[cfg(test)]
mod detectors {
    use super::*;

    fn found(source: &str) -> Vec<usize> {
        let mut lines: Vec<_> = impurities(&production_code(source))
            .into_iter()
            .map(|(line, _)| line)
            .collect();
        lines.dedup();
        lines
    }

    #[test]
    fn clocks_files_and_runtimes_are_found() {
        for bad in [
            "use tokio::sync::mpsc;",
            "let t = std::time::SystemTime::now();",
            "let t = Instant::now();",
            "use std::time::{Duration, Instant};",
            "use std::{collections::BTreeMap, fs};",
            "let x = std::fs::read(p)?;",
            "use rdkafka::consumer::Consumer;",
            "pub async fn commit() {}",
            "let id = Uuid::new_v4();",
        ] {
            assert_eq!(found(bad), [1], "{bad}");
        }
    }

    #[test]
    fn comments_strings_tests_and_longer_names_are_not() {
        for good in [
            "// tokio would not do here",
            "/* std::fs /* nested */ SystemTime */ fn f() {}",
            "let s = \"std::fs and \\\" tokio\";",
            "let s = r#\"SystemTime \" tokio\"#;",
            "use std::time::Duration;\nenum Violation { SystemTime }",
            "struct InstantiatedTopic; fn tokio_like() {}",
            "fn f<'a>(x: &'a str) -> char { '\"' }",
            "#[cfg(test)]\nmod tests {\n    use std::fs;\n    fn f() { if x { tokio() } }\n}",
            "#[cfg(test)]\nuse std::time::Instant;\nfn f() {}",
        ] {
            assert_eq!(found(good), [0usize; 0], "{good}");
        }
    }

    #[test]
    fn code_after_a_test_module_still_counts() {
        let source = "#[cfg(test)]\nmod tests { fn f() { g({}) } }\nuse std::fs;\n";
        assert_eq!(found(source), [3]);
        let source = "let quote = '\\'';\nlet t = Instant::now();";
        assert_eq!(found(source), [2]);
    }

    #[test]
    fn iteration_in_hash_order_is_found() {
        for (bad, lines) in [
            (
                "struct S { bars: FxHashMap<u8, u8> }\nfn f(s: &S) { for x in s.bars.values() {} }",
                vec![2],
            ),
            (
                "let mut seen = HashMap::new();\nfor (k, v) in &seen {}",
                vec![2],
            ),
            (
                "let seen: HashSet<u8> = x;\nlet v: Vec<_> = seen\n    .into_iter()\n    .collect();",
                vec![2],
            ),
            ("fn f(m: &mut HashMap<u8, u8>) { m.drain(); }", vec![1]),
        ] {
            assert_eq!(found(bad), lines, "{bad}");
        }
        for good in [
            "struct S { bars: FxHashMap<u8, u8>, order: Vec<u8> }\nfn f(s: &S) { for x in s.order.iter() { s.bars.get(x); } }",
            "let bars: BTreeMap<u8, u8> = x;\nfor b in bars.values() {}",
            "use std::collections::HashMap;\nlet open_bars: HashMap<u8, u8> = x;\nlet n = bars.iter();",
        ] {
            assert_eq!(found(good), [0usize; 0], "{good}");
        }
    }

    #[test]
    fn manifests_are_read_as_cargo_reads_them() {
        let manifest = "[package]\nname = \"finlake-x\"\n\n[dependencies]\nfinlake-state.workspace = true\n# tokio = \"1\"\nserde = { version = \"1\" }\n\n[dev-dependencies]\nfinlake-topology = { path = \"..\" }\n\n[build-dependencies]\ncc = \"1\"\n\n[target.'cfg(unix)'.dependencies]\nlibc = \"0.2\"\n\n[dependencies.tokio]\nversion = \"1\"\n";
        assert_eq!(package_name(manifest).as_deref(), Some("finlake-x"));
        let found: Vec<_> = dependencies(manifest).into_iter().collect();
        assert_eq!(found, ["cc", "finlake-state", "libc", "serde", "tokio"]);
        let workspace = "[workspace.dependencies]\nfinlake-state = { path = \"state\" }\n";
        assert!(dependencies(workspace).is_empty());
    }

    #[test]
    fn imports_of_the_projects_crates_are_found() {
        let code = "use finlake_topology::{Task};\nlet x = finlake_state::StateDb::memory(); finlake_note();";
        let found: Vec<_> = finlake_paths(code).into_iter().collect();
        assert_eq!(found, ["finlake_state", "finlake_topology"]);
    }

    #[test]
    fn length_is_counted_without_tests() {
        let body = "fn f() {}\n".repeat(10);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{body}}}\n");
        assert_eq!(lines_without_tests(&format!("{body}{tests}")), 10);
        assert_eq!(lines_without_tests(&body), 10);
    }
}
