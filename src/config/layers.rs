//! Where values come from: defaults, the file, the environment, the command line, each over the
//! one before. The result is a checked [`Value`] per key, with its origin, or the whole list of
//! what is wrong.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use super::keys::{KEYS, Key, env_name, find};
use super::kind::{Kind, Raw, Value};
use super::secret::{Properties, Secret};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    Default,
    /// The data folder's layout.
    Layout,
    /// The configuration file, with the line.
    File(String, usize),
    /// The environment variable.
    Env(String),
    /// The command line's flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Layout => f.write_str("--data"),
            Origin::File(path, line) => write!(f, "{path}:{line}"),
            Origin::Env(name) => write!(f, "environment variable {name}"),
            Origin::Flag(flag) => f.write_str(flag),
        }
    }
}

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    pub key: String,
    pub origin: Option<Origin>,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key)?;
        if let Some(origin) = self.origin.as_ref().filter(|o| **o != Origin::Default) {
            write!(f, " ({origin})")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// The checked values of all keys.
#[derive(Debug)]
pub struct Layers {
    values: BTreeMap<&'static str, (Value, Origin)>,
    pub problems: Vec<Problem>,
    pub warnings: Vec<String>,
    /// Keys that were asked for; a test compares them with the table.
    asked: RefCell<BTreeSet<&'static str>>,
}

impl Layers {
    /// The defaults of the table.
    pub fn defaults() -> Self {
        let mut layers = Layers {
            values: BTreeMap::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
            asked: RefCell::default(),
        };
        for key in KEYS {
            let raw = Raw::Text(key.default.into());
            if !key.default.is_empty() || key.kind == Kind::Map {
                layers.put(key, &raw, Origin::Default);
            }
        }
        layers
    }

    /// Lays one value over what is there; a wrong one becomes a problem.
    pub fn put(&mut self, key: &'static Key, raw: &Raw, origin: Origin) {
        match key.kind.parse(raw) {
            Ok(value) => {
                self.values.insert(key.path, (value, origin));
            }
            Err(what) => {
                let allowed = if key.kind == Kind::Secret {
                    format!("set {} or name a file in {}_file", key.env(), key.path)
                } else {
                    format!("allowed: {}", key.kind.allowed())
                };
                self.problem(key.path, Some(origin), format!("{what}; {allowed}"));
            }
        }
    }

    pub fn problem(&mut self, key: &str, origin: Option<Origin>, message: String) {
        self.problems.push(Problem {
            key: key.to_owned(),
            origin,
            message,
        });
    }

    /// The configuration file's text. `name` stands in messages.
    pub fn file(&mut self, name: &str, text: &str) {
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(e) => {
                let line = e.span().map_or(1, |s| line_of(text, s.start));
                let origin = Origin::File(name.to_owned(), line);
                self.problem("configuration file", Some(origin), e.message().to_owned());
                return;
            }
        };
        for (section, value) in table {
            let toml::Value::Table(keys) = value else {
                let line = line_with(text, "", &section);
                let origin = Origin::File(name.to_owned(), line);
                self.problem(&section, Some(origin), unknown(&section));
                continue;
            };
            for (key, value) in keys {
                let path = format!("{section}.{key}");
                let origin = Origin::File(name.to_owned(), line_with(text, &section, &key));
                self.one(&path, Raw::Toml(value), origin);
            }
        }
    }

    /// The environment's `FINLAKE_…` variables. Those of no section are warned of only: an
    /// orchestrator may set its own (Kubernetes does, for a service named finlake).
    pub fn env(&mut self, env: &BTreeMap<String, String>, reserved: &[&str]) {
        for (name, value) in env {
            let Some(rest) = name.strip_prefix("FINLAKE_") else {
                continue;
            };
            if reserved.contains(&name.as_str()) || value.is_empty() {
                continue;
            }
            let origin = Origin::Env(name.clone());
            if let Some(key) = KEYS.iter().find(|k| k.env() == *name) {
                self.put(key, &Raw::Text(value.clone()), origin);
            } else if let Some(key) = KEYS
                .iter()
                .find(|k| k.kind == Kind::Secret && env_name(&format!("{}_file", k.path)) == *name)
            {
                self.secret_file(key, Path::new(value), origin);
            } else if rest.contains("_SERVICE_") || value.contains("://") && rest.contains("PORT") {
                // What Kubernetes injects for services called finlake-…
            } else if super::keys::SECTIONS
                .iter()
                .any(|(s, _)| rest.starts_with(&format!("{}_", s.to_ascii_uppercase())))
            {
                let near = nearest(name, KEYS.iter().map(Key::env));
                let hint = near.map_or(String::new(), |n| format!("; did you mean {n}?"));
                self.problem(name, None, format!("no such key{hint}"));
            } else {
                self.warnings.push(format!(
                    "the environment variable {name} is not a key of ours"
                ));
            }
        }
    }

    /// A `section.key=value` of the command line.
    pub fn set(&mut self, path: &str, value: &str, flag: &str) {
        if find(path).is_some_and(|k| k.kind == Kind::Secret) {
            let message = format!(
                "a secret on the command line is visible to every user of the machine; set {} or \
                 {path}_file",
                env_name(path)
            );
            self.problem(path, None, message);
            return;
        }
        self.one(
            path,
            Raw::Text(value.to_owned()),
            Origin::Flag(flag.to_owned()),
        );
    }

    /// A value that follows from the data folder; it yields to anything said by the user.
    pub fn layout(&mut self, path: &'static str, value: &Path) {
        if !self.values.contains_key(path) {
            let text = value.to_string_lossy().into_owned();
            self.values
                .insert(path, (Value::Text(text), Origin::Layout));
        }
    }

    fn one(&mut self, path: &str, raw: Raw, origin: Origin) {
        if let Some(key) = find(path) {
            self.put(key, &raw, origin);
            return;
        }
        let secret = path
            .strip_suffix("_file")
            .and_then(find)
            .filter(|k| k.kind == Kind::Secret);
        match (secret, raw) {
            (Some(key), Raw::Text(file) | Raw::Toml(toml::Value::String(file))) => {
                self.secret_file(key, Path::new(&file), origin);
            }
            (Some(_), _) => self.problem(path, Some(origin), "not the name of a file".into()),
            (None, _) => self.problem(path, Some(origin), unknown(path)),
        }
    }

    fn secret_file(&mut self, key: &'static Key, file: &Path, origin: Origin) {
        match std::fs::read_to_string(file) {
            Ok(text) => {
                let secret = Secret::new(text.trim_end_matches(['\r', '\n']).to_owned());
                self.values
                    .insert(key.path, (Value::Secret(secret), origin));
            }
            Err(e) => {
                let message = format!("cannot read {}: {e}", file.display());
                self.problem(&format!("{}_file", key.path), Some(origin), message);
            }
        }
    }

    // What follows reads the result. A key that is not in the table, or of another kind, is a
    // mistake in this crate, which the test `every_key_is_read` finds; it reads as the kind's
    // empty value.

    fn get(&self, path: &'static str) -> Option<&Value> {
        self.asked.borrow_mut().insert(path);
        self.values.get(path).map(|(value, _)| value)
    }

    pub fn int(&self, path: &'static str) -> i64 {
        match self.get(path) {
            Some(Value::Int(n) | Value::Millis(n)) => *n,
            _ => 0,
        }
    }

    pub fn float(&self, path: &'static str) -> f64 {
        match self.get(path) {
            Some(Value::Float(n)) => *n,
            _ => 0.0,
        }
    }

    pub fn bool(&self, path: &'static str) -> bool {
        matches!(self.get(path), Some(Value::Bool(true)))
    }

    pub fn emit(&self, path: &'static str) -> Option<i64> {
        match self.get(path) {
            Some(Value::Emit(every)) => *every,
            _ => None,
        }
    }

    /// Text; empty is none.
    pub fn text(&self, path: &'static str) -> Option<String> {
        match self.get(path) {
            Some(Value::Text(t)) if !t.is_empty() => Some(t.clone()),
            _ => None,
        }
    }

    pub fn list(&self, path: &'static str) -> Vec<String> {
        match self.get(path) {
            Some(Value::List(list)) => list.clone(),
            _ => Vec::new(),
        }
    }

    pub fn ints(&self, path: &'static str) -> Vec<i64> {
        match self.get(path) {
            Some(Value::Ints(list)) => list.clone(),
            _ => Vec::new(),
        }
    }

    pub fn map(&self, path: &'static str) -> Properties {
        match self.get(path) {
            Some(Value::Map(map)) => map.clone(),
            _ => Properties::default(),
        }
    }

    pub fn secret(&self, path: &'static str) -> Option<Secret> {
        match self.get(path) {
            Some(Value::Secret(s)) => Some(s.clone()),
            _ => None,
        }
    }

    /// The value and its origin, for printing.
    pub fn shown(&self, path: &str) -> Option<(String, &Origin)> {
        self.values
            .get(path)
            .map(|(value, origin)| (value.to_toml(), origin))
    }

    pub fn origin(&self, path: &str) -> Option<Origin> {
        self.values.get(path).map(|(_, origin)| origin.clone())
    }

    #[cfg(test)]
    pub fn asked(&self) -> BTreeSet<&'static str> {
        self.asked.borrow().clone()
    }
}

fn unknown(path: &str) -> String {
    let near = nearest(path, KEYS.iter().map(|k| k.path.to_owned()));
    match near {
        Some(near) => format!("no such key; did you mean {near}?"),
        None => "no such key; `finlake config --example` lists them all".into(),
    }
}

/// The candidate that differs least, if it is near enough to be a slip.
fn nearest(word: &str, candidates: impl Iterator<Item = String>) -> Option<String> {
    candidates
        .map(|c| (distance(word, &c), c))
        .filter(|(d, c)| *d <= 3.max(c.len() / 5))
        .min()
        .map(|(_, c)| c)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let change = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}

/// The line of a key: the first line of its section that begins with it. TOML has more ways to
/// write a key than this looks for; then it is the first line.
fn line_with(text: &str, section: &str, key: &str) -> usize {
    let mut inside = section.is_empty();
    let dotted = format!("{section}.{key}");
    for (n, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if let Some(header) = line.strip_prefix('[') {
            let header = header
                .trim_start_matches('[')
                .split(']')
                .next()
                .unwrap_or("")
                .trim();
            if header == dotted || section.is_empty() && header == key {
                return n + 1;
            }
            inside = header == section;
            continue;
        }
        let name = line
            .split(['=', '.'])
            .next()
            .unwrap_or("")
            .trim()
            .trim_matches('"');
        if inside && name == key || line.starts_with(&dotted) {
            return n + 1;
        }
    }
    1
}
