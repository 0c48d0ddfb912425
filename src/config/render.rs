//! The example file, the effective settings and docs/configuration.md, all from the table of
//! keys.

use std::fmt::Write as _;

use super::keys::{KEYS, Key, SECTIONS, env_name};
use super::kind::{Kind, Raw};
use super::layers::{Layers, Origin};

const WIDTH: usize = 96;

/// A complete configuration file: every key with its meaning, its range, its environment
/// variable and its default. Keys without a constant default are commented out.
pub fn example() -> String {
    let mut out = String::new();
    out.push_str(
        "# FinLake configuration: every key, with its default.\n\
         # A key may be left out. The environment variable named beside it wins over this file,\n\
         # and `--set section.key=value` on the command line wins over both.\n\
         # DIR is the data folder (--data, else ./finlake-data).\n",
    );
    for (section, about) in SECTIONS {
        let _ = write!(out, "\n# {about}\n[{section}]\n");
        for key in KEYS.iter().filter(|k| k.section() == *section) {
            out.push('\n');
            comment(&mut out, key.doc);
            let range = match key.kind {
                Kind::Secret => "Never written into this file.".to_owned(),
                _ => format!("Allowed: {}.", key.kind.allowed()),
            };
            comment(&mut out, &range);
            comment(&mut out, &format!("Environment: {}", key.env()));
            let _ = writeln!(out, "{}", assignment(key));
        }
    }
    out
}

fn assignment(key: &Key) -> String {
    let name = key.name();
    match key.kind {
        Kind::Secret => format!("# {name}_file = \"/run/secrets/{name}\""),
        Kind::Map => format!("{name} = {{}}"),
        _ if !key.computed.is_empty() => format!("# {name} = \"{}\"", key.computed),
        _ if key.default.is_empty() => format!("# {name} = \"\""),
        _ => format!("{name} = {}", default_toml(key)),
    }
}

fn default_toml(key: &Key) -> String {
    key.kind
        .parse(&Raw::Text(key.default.into()))
        .map_or_else(|_| String::new(), |v| v.to_toml())
}

fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(out, "{line}");
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(out, "{line}");
}

/// One effective setting.
pub struct Setting {
    pub key: &'static str,
    /// As a TOML literal; secrets as `***`.
    pub value: String,
    pub origin: String,
}

/// The effective settings with their origins. Secrets are hidden.
pub fn settings(layers: &Layers) -> Vec<Setting> {
    KEYS.iter()
        .map(|key| {
            let (value, origin) = match layers.shown(key.path) {
                Some((value, origin)) => (value, origin.clone()),
                None => (String::new(), Origin::Default),
            };
            Setting {
                key: key.path,
                value,
                origin: origin.to_string(),
            }
        })
        .collect()
}

/// The tables of docs/configuration.md, between its markers.
pub fn markdown() -> String {
    let mut out = String::new();
    for (section, about) in SECTIONS {
        let _ = write!(
            out,
            "### {section}\n\n{about}\n\n| key | default | allowed | meaning |\n| --- | --- | --- | --- |\n"
        );
        for key in KEYS.iter().filter(|k| k.section() == *section) {
            let default = match key.kind {
                Kind::Map => "`{}`".to_owned(),
                _ if !key.computed.is_empty() => format!("`{}`", key.computed),
                _ if key.default.is_empty() => "–".to_owned(),
                _ => format!("`{}`", default_toml(key)),
            };
            let (name, allowed) = match key.kind {
                Kind::Secret => (
                    format!("`{}_file`", key.name()),
                    format!("a file; or the secret itself in `{}`", env_name(key.path)),
                ),
                _ => (format!("`{}`", key.name()), key.kind.allowed()),
            };
            let _ = writeln!(
                out,
                "| {name} | {default} | {} | {} |",
                allowed.replace('|', "\\|"),
                key.doc.replace('|', "\\|")
            );
        }
        out.push('\n');
    }
    out
}
