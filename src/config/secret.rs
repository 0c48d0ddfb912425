//! A text that must never be seen: neither in logs, nor in errors, nor on the terminal.

use std::collections::BTreeMap;
use std::fmt;

/// A secret. `Debug` shows `***`; there is no `Display` and no serialisation. What needs it
/// calls [`Secret::reveal`], which is easy to search for.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself. Hand it to the client that needs it and nowhere else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Passed-through properties; `Debug` hides the values of those that hold secrets.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Properties(pub BTreeMap<String, String>);

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |k: &str, v| if is_secret_property(k) { "***" } else { v };
        f.debug_map()
            .entries(self.0.iter().map(|(k, v)| (k, hidden(k, v.as_str()))))
            .finish()
    }
}

/// Whether a passed-through property holds a secret, by its name.
pub fn is_secret_property(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let ends = [
        "password",
        "passphrase",
        "secret",
        "token",
        "credential",
        "authorization",
    ];
    let inside = [
        "passw",
        "jaas",
        "secret-access",
        "secret_access",
        "ssl.key.pem",
    ];
    ends.iter().any(|end| name.ends_with(end)) || inside.iter().any(|part| name.contains(part))
}
