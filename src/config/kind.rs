//! What a configuration key may hold: parsing, the allowed range in words, and the value itself.
//!
//! Pure: text or a TOML value in, a checked [`Value`] or a sentence out. The sentence never
//! repeats the value of a secret.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use finlake_market::{Interval, Intervals};

use super::secret::{Properties, Secret, is_secret_property};

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// The kind of a key: it decides how a value is read and which values are allowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A whole number, both ends included.
    Int { min: i64, max: i64 },
    /// A number, both ends included.
    Float { min: f64, max: f64 },
    /// true or false.
    Bool,
    /// Any text without control characters.
    Text,
    /// A name that may stand in topic, group and catalog names.
    Name,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A duration such as `100ms`, `10s`, `15m`, `1h`, `35d`; both ends included, milliseconds.
    Duration { min: i64, max: i64 },
    /// `commit` or a duration.
    Emit,
    /// A list of bar intervals.
    Intervals,
    /// A list of whole numbers, ascending.
    Ints { min: i64, max: i64 },
    /// An http or https address.
    Url,
    /// A path or an address; what it means is the section's business.
    Location,
    /// A path of the file system.
    Path,
    /// `IP:PORT`, or `off`.
    Listen,
    /// `host:port`, several separated by commas.
    Servers,
    /// A table of text to text.
    Map,
    /// A secret: from the environment or from a file named by `<key>_file`, nowhere else.
    Secret,
}

/// A checked value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Millis(i64),
    /// `None` is `commit`.
    Emit(Option<i64>),
    List(Vec<String>),
    Ints(Vec<i64>),
    Map(Properties),
    Secret(Secret),
}

/// A value as it came in, before it was checked.
#[derive(Debug, Clone)]
pub enum Raw {
    /// From the environment, the command line or the table of defaults.
    Text(String),
    /// From a TOML file.
    Toml(toml::Value),
}

impl Kind {
    /// The allowed values in words, as they stand in messages and in the example file.
    pub fn allowed(&self) -> String {
        match self {
            Kind::Int { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Float { min, max } => format!("a number from {min} to {max}"),
            Kind::Bool => "true or false".into(),
            Kind::Text => "text".into(),
            Kind::Name => "1 to 80 letters, digits, '.', '_' or '-'".into(),
            Kind::OneOf(words) => format!("one of {}", words.join(", ")),
            Kind::Duration { min, max } => format!(
                "a duration from {} to {}",
                format_duration(*min),
                format_duration(*max)
            ),
            Kind::Emit => "\"commit\" or a duration from 10ms to 1h".into(),
            Kind::Intervals => {
                "a list of intervals: minutes that divide 1440, hours that divide 24, whole days"
                    .into()
            }
            Kind::Ints { min, max } => {
                format!("a list of 1 to 16 ascending whole numbers from {min} to {max}")
            }
            Kind::Url => "an http:// or https:// address".into(),
            Kind::Location => "a path, or an address with a scheme".into(),
            Kind::Path => "a path".into(),
            Kind::Listen => "IP:PORT (port 0 takes a free one), or \"off\"".into(),
            Kind::Servers => "host:port, several separated by commas".into(),
            Kind::Map => "a table of text to text".into(),
            Kind::Secret => "a secret".into(),
        }
    }

    /// Reads and checks a value. `Err` says what is wrong, without the allowed range.
    pub fn parse(&self, raw: &Raw) -> Result<Value, String> {
        match self {
            Kind::Int { min, max } => {
                let n = int(raw)?;
                in_range(n, *min, *max)?;
                Ok(Value::Int(n))
            }
            Kind::Float { min, max } => {
                let n = float(raw)?;
                if !n.is_finite() || n < *min || n > *max {
                    return Err(format!("{n} is out of range"));
                }
                Ok(Value::Float(n))
            }
            Kind::Bool => match raw {
                Raw::Toml(toml::Value::Boolean(b)) => Ok(Value::Bool(*b)),
                Raw::Text(t) if t == "true" => Ok(Value::Bool(true)),
                Raw::Text(t) if t == "false" => Ok(Value::Bool(false)),
                other => Err(format!("{} is neither", show(other))),
            },
            Kind::Text | Kind::Location | Kind::Path => Ok(Value::Text(plain_text(raw)?)),
            Kind::Name => {
                let t = plain_text(raw)?;
                let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
                if t.is_empty() || t.len() > 80 || !t.chars().all(good) {
                    return Err(format!("\"{t}\" is not a name"));
                }
                Ok(Value::Text(t))
            }
            Kind::OneOf(words) => {
                let t = plain_text(raw)?;
                if words.contains(&t.as_str()) {
                    Ok(Value::Text(t))
                } else {
                    Err(format!("\"{t}\" is not known"))
                }
            }
            Kind::Duration { min, max } => {
                let ms = duration(raw)?;
                if ms < *min || ms > *max {
                    return Err(format!("{} is out of range", format_duration(ms)));
                }
                Ok(Value::Millis(ms))
            }
            Kind::Emit => {
                if matches!(raw, Raw::Text(t) | Raw::Toml(toml::Value::String(t)) if t == "commit")
                {
                    return Ok(Value::Emit(None));
                }
                let ms = duration(raw)?;
                in_range(ms, 10, HOUR)
                    .map_err(|_| format!("{} is out of range", format_duration(ms)))?;
                Ok(Value::Emit(Some(ms)))
            }
            Kind::Intervals => {
                let list = list(raw)?;
                if list.is_empty() {
                    return Err("the list is empty".into());
                }
                intervals(&list)?;
                Ok(Value::List(list))
            }
            Kind::Ints { min, max } => {
                let ints = ints(raw)?;
                if ints.is_empty() || ints.len() > 16 {
                    return Err(format!("the list has {} numbers", ints.len()));
                }
                for n in &ints {
                    in_range(*n, *min, *max)?;
                }
                if !ints.windows(2).all(|w| w[0] < w[1]) {
                    return Err("the numbers do not ascend".into());
                }
                Ok(Value::Ints(ints))
            }
            Kind::Url => {
                let t = plain_text(raw)?;
                match url::Url::parse(&t) {
                    Ok(u) if !matches!(u.scheme(), "http" | "https") || !u.has_host() => Err(
                        format!("\"{}\" is not such an address", without_userinfo(&u)),
                    ),
                    Ok(u) if u.password().is_some() => {
                        Err("the address holds a password; secrets have keys of their own".into())
                    }
                    Ok(_) => Ok(Value::Text(t.trim_end_matches('/').to_owned())),
                    Err(e) => Err(format!("not an address ({e})")),
                }
            }
            Kind::Listen => {
                let t = plain_text(raw)?;
                if t == "off" || t.parse::<SocketAddr>().is_ok() {
                    Ok(Value::Text(t))
                } else {
                    Err(format!("\"{t}\" is not an IP address with a port"))
                }
            }
            Kind::Servers => {
                let servers: Vec<String> = list(raw)?;
                if servers.is_empty() {
                    return Err("no server is named".into());
                }
                for s in &servers {
                    let port = s.rsplit_once(':').and_then(|(h, p)| {
                        (!h.is_empty()).then(|| p.parse::<u16>().ok()).flatten()
                    });
                    if port.is_none_or(|p| p == 0) {
                        return Err(format!("\"{s}\" is not host:port"));
                    }
                }
                Ok(Value::Text(servers.join(",")))
            }
            Kind::Map => map(raw).map(|map| Value::Map(Properties(map))),
            Kind::Secret => match raw {
                Raw::Text(t) => Ok(Value::Secret(Secret::new(t.clone()))),
                Raw::Toml(_) => Err("a secret must not stand in a configuration file".into()),
            },
        }
    }
}

impl Value {
    /// The value as a TOML literal. Secrets are never shown.
    pub fn to_toml(&self) -> String {
        match self {
            Value::Int(n) => n.to_string(),
            Value::Float(n) => format!("{n:?}"),
            Value::Bool(b) => b.to_string(),
            Value::Text(t) => quote(t),
            Value::Millis(ms) => quote(&format_duration(*ms)),
            Value::Emit(None) => quote("commit"),
            Value::Emit(Some(ms)) => quote(&format_duration(*ms)),
            Value::List(list) => {
                let items: Vec<String> = list.iter().map(|t| quote(t)).collect();
                format!("[{}]", items.join(", "))
            }
            Value::Ints(list) => {
                let items: Vec<String> = list.iter().map(i64::to_string).collect();
                format!("[{}]", items.join(", "))
            }
            Value::Map(map) if map.0.is_empty() => "{}".into(),
            Value::Map(map) => {
                let items: Vec<String> = map
                    .0
                    .iter()
                    .map(|(k, v)| {
                        let shown = if is_secret_property(k) { "***" } else { v };
                        format!("{} = {}", quote(k), quote(shown))
                    })
                    .collect();
                format!("{{ {} }}", items.join(", "))
            }
            Value::Secret(_) => quote("***"),
        }
    }
}

/// The named intervals, shortest first, with `1d` added if it is missing.
pub fn intervals(names: &[String]) -> Result<Intervals, String> {
    let list: Result<Vec<Interval>, _> = names.iter().map(|n| Interval::parse(n)).collect();
    list.and_then(|list| Intervals::new(&list))
        .map_err(|e| e.to_string())
}

/// A duration in its largest whole unit: `90s`, `1h`, `35d`.
pub fn format_duration(ms: i64) -> String {
    for (unit, len) in [("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND)] {
        if ms != 0 && ms % len == 0 {
            return format!("{}{unit}", ms / len);
        }
    }
    format!("{ms}ms")
}

/// Milliseconds of `100ms`, `10s`, `15m`, `1h`, `35d`.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let len = match unit {
        "ms" => 1,
        "s" => SECOND,
        "m" => MINUTE,
        "h" => HOUR,
        "d" => DAY,
        _ => {
            return Err(format!(
                "\"{text}\" is not a duration: write a whole number and ms, s, m, h or d"
            ));
        }
    };
    number
        .parse::<i64>()
        .ok()
        .and_then(|n| n.checked_mul(len))
        .ok_or_else(|| format!("\"{text}\" is not a duration: write a whole number and a unit"))
}

fn duration(raw: &Raw) -> Result<i64, String> {
    match raw {
        Raw::Text(t) | Raw::Toml(toml::Value::String(t)) => parse_duration(t.trim()),
        Raw::Toml(other) => Err(format!("{} has no unit: write it as \"10s\"", other)),
    }
}

fn in_range(n: i64, min: i64, max: i64) -> Result<(), String> {
    if n < min || n > max {
        return Err(format!("{n} is out of range"));
    }
    Ok(())
}

fn int(raw: &Raw) -> Result<i64, String> {
    match raw {
        Raw::Toml(toml::Value::Integer(n)) => Ok(*n),
        Raw::Text(t) => t
            .trim()
            .parse()
            .map_err(|_| format!("\"{t}\" is not a whole number")),
        Raw::Toml(other) => Err(format!("{other} is not a whole number")),
    }
}

fn float(raw: &Raw) -> Result<f64, String> {
    match raw {
        Raw::Toml(toml::Value::Float(n)) => Ok(*n),
        // Configured numbers are small; a whole number is exact in a double.
        Raw::Toml(toml::Value::Integer(n)) => Ok(*n as f64),
        Raw::Text(t) => t
            .trim()
            .parse()
            .map_err(|_| format!("\"{t}\" is not a number")),
        Raw::Toml(other) => Err(format!("{other} is not a number")),
    }
}

fn plain_text(raw: &Raw) -> Result<String, String> {
    match raw {
        Raw::Text(t) | Raw::Toml(toml::Value::String(t)) => {
            if t.chars().any(char::is_control) {
                return Err("the text holds control characters".into());
            }
            Ok(t.trim().to_owned())
        }
        Raw::Toml(other) => Err(format!("{other} is not text: put it in quotes")),
    }
}

fn list(raw: &Raw) -> Result<Vec<String>, String> {
    match raw {
        Raw::Text(t) | Raw::Toml(toml::Value::String(t)) => Ok(split(t)),
        Raw::Toml(toml::Value::Array(items)) => items
            .iter()
            .map(|v| match v {
                toml::Value::String(t) => Ok(t.trim().to_owned()),
                other => Err(format!("{other} is not text: put it in quotes")),
            })
            .collect(),
        Raw::Toml(other) => Err(format!("{other} is not a list")),
    }
}

fn ints(raw: &Raw) -> Result<Vec<i64>, String> {
    match raw {
        Raw::Text(t) => split(t)
            .iter()
            .map(|t| {
                t.parse()
                    .map_err(|_| format!("\"{t}\" is not a whole number"))
            })
            .collect(),
        Raw::Toml(toml::Value::Array(items)) => {
            items.iter().map(|v| int(&Raw::Toml(v.clone()))).collect()
        }
        Raw::Toml(other) => Err(format!("{other} is not a list")),
    }
}

/// `a, b` or `["a", "b"]`, as one writes it in an environment variable.
fn split(text: &str) -> Vec<String> {
    let text = text.trim();
    let inner = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(text);
    inner
        .split(',')
        .map(|t| t.trim().trim_matches('"').to_owned())
        .filter(|t| !t.is_empty())
        .collect()
}

fn map(raw: &Raw) -> Result<BTreeMap<String, String>, String> {
    let table = match raw {
        Raw::Toml(toml::Value::Table(table)) => table.clone(),
        Raw::Text(t) if t.trim().is_empty() => return Ok(BTreeMap::new()),
        Raw::Text(t) if t.trim_start().starts_with('{') => {
            let doc = format!("map = {}", t.trim());
            let mut doc: toml::Table = doc
                .parse()
                .map_err(|_| "not an inline TOML table".to_owned())?;
            match doc.remove("map") {
                Some(toml::Value::Table(table)) => table,
                _ => return Err("not an inline TOML table".into()),
            }
        }
        Raw::Text(t) => {
            let mut map = BTreeMap::new();
            for pair in t.split(',').map(str::trim).filter(|p| !p.is_empty()) {
                let Some((k, v)) = pair.split_once('=') else {
                    return Err("write it as name=value,name=value".into());
                };
                map.insert(k.trim().to_owned(), v.trim().to_owned());
            }
            return Ok(map);
        }
        Raw::Toml(_) => return Err("not a table".into()),
    };
    let mut map = BTreeMap::new();
    flatten("", &table, &mut map)?;
    Ok(map)
}

/// `ssl.ca.location = "x"` without quotes is a nested table in TOML; dotted names are meant.
fn flatten(
    prefix: &str,
    table: &toml::Table,
    into: &mut BTreeMap<String, String>,
) -> Result<(), String> {
    for (key, value) in table {
        let name = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        match value {
            toml::Value::String(t) => into.insert(name, t.clone()),
            toml::Value::Integer(n) => into.insert(name, n.to_string()),
            toml::Value::Float(n) => into.insert(name, n.to_string()),
            toml::Value::Boolean(b) => into.insert(name, b.to_string()),
            toml::Value::Table(inner) => {
                flatten(&name, inner, into)?;
                None
            }
            _ => return Err(format!("\"{name}\" is neither text nor a number")),
        };
    }
    Ok(())
}

fn without_userinfo(url: &url::Url) -> String {
    let mut url = url.clone();
    // Both fail only for addresses that cannot hold user names, which then hold none.
    let _ = url.set_password(None);
    let _ = url.set_username("");
    url.to_string()
}

fn show(raw: &Raw) -> String {
    match raw {
        Raw::Text(t) => format!("\"{t}\""),
        Raw::Toml(v) => v.to_string(),
    }
}

fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: Kind, t: &str) -> Result<Value, String> {
        kind.parse(&Raw::Text(t.into()))
    }

    #[test]
    fn durations_round_trip() {
        for (t, ms) in [
            ("100ms", 100),
            ("10s", 10_000),
            ("15m", 900_000),
            ("35d", 35 * DAY),
        ] {
            assert_eq!(parse_duration(t).unwrap(), ms);
            assert_eq!(format_duration(ms), t);
        }
        for bad in ["", "10", "s", "1.5s", "-1s", "10 s", "99999999999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn intervals_are_those_of_the_market() {
        let value = text(Kind::Intervals, "1m, 1h,1d").unwrap();
        assert_eq!(
            value,
            Value::List(vec!["1m".into(), "1h".into(), "1d".into()])
        );
        for bad in ["7m", "60m", "", "500ms"] {
            assert!(text(Kind::Intervals, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn maps_take_dotted_names_with_and_without_quotes() {
        let want = Properties(BTreeMap::from([("a.b".to_owned(), "1".to_owned())]));
        for t in ["a.b=1", "{ \"a.b\" = 1 }", "{ a.b = \"1\" }"] {
            assert_eq!(text(Kind::Map, t).unwrap(), Value::Map(want.clone()), "{t}");
        }
    }

    #[test]
    fn secrets_in_maps_are_not_shown() {
        let value = text(
            Kind::Map,
            "sasl.password=hunter2,ssl.ca.location=ca.pem,a.token.endpoint.url=x",
        )
        .unwrap();
        assert!(!value.to_toml().contains("hunter2"));
        assert!(value.to_toml().contains("ca.pem"));
        assert!(value.to_toml().contains("\"x\""));
    }

    #[test]
    fn an_address_with_a_password_is_refused_without_repeating_it() {
        let error = text(Kind::Url, "http://u:hunter2@host/").unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        let error = text(Kind::Url, "ftp://u:hunter2@host/").unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
