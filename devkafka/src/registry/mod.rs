//! A Confluent-compatible Avro schema registry: subjects, versions, ids, compatibility.
//!
//! [`Registry`] is the state and its rules, synchronous, over a [`Storage`]; `http.rs` puts it
//! behind HTTP. Every change is written to `registry.journal` before it is answered. It must never
//! give one schema two ids, or one id to two schemas.

mod compat;
mod http;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use compat::Level;
pub use http::router;

use crate::core::{frame, next_frame};
use crate::storage::{Storage, StorageError};

const JOURNAL: &str = "registry.journal";

/// A refusal, as the registry's HTTP interface reports it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refused {
    /// HTTP status.
    pub status: u16,
    /// The registry's own code.
    pub code: u32,
    pub message: String,
}

fn refused(status: u16, code: u32, message: impl Into<String>) -> Refused {
    Refused {
        status,
        code,
        message: message.into(),
    }
}

impl Refused {
    fn subject(subject: &str) -> Refused {
        refused(404, 40401, format!("Subject '{subject}' not found."))
    }

    fn version(version: &str) -> Refused {
        refused(404, 40402, format!("Version {version} not found."))
    }

    fn schema() -> Refused {
        refused(404, 40403, "Schema not found")
    }

    fn invalid(message: impl std::fmt::Display) -> Refused {
        refused(422, 42201, format!("Invalid schema: {message}"))
    }

    fn level(level: &str) -> Refused {
        refused(
            422,
            42203,
            format!(
                "Invalid compatibility level {level}. Valid values are none, backward, forward, full, backward_transitive, forward_transitive, and full_transitive"
            ),
        )
    }
}

impl From<StorageError> for Refused {
    fn from(error: StorageError) -> Refused {
        tracing::error!(%error, "registry storage failed");
        refused(500, 50001, "Error in the backend data store")
    }
}

type Result<T> = std::result::Result<T, Refused>;

/// One version of a subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub subject: String,
    pub version: i32,
    pub id: i32,
    /// Soft-deleted: invisible, its number is not used again.
    pub deleted: bool,
}

#[derive(Debug, Serialize, Deserialize)]
enum Record {
    Schema {
        id: i32,
        schema: String,
    },
    Version(Version),
    SubjectForgotten {
        subject: String,
    },
    /// A compatibility level; without subject the global one, without level the setting is removed.
    Level {
        subject: Option<String>,
        level: Option<Level>,
    },
}

/// The registry's state.
pub struct Registry {
    storage: Box<dyn Storage>,
    schemas: BTreeMap<i32, String>,
    /// Normal form of a schema → its id.
    ids: BTreeMap<String, i32>,
    subjects: BTreeMap<String, Vec<Version>>,
    global: Level,
    levels: BTreeMap<String, Level>,
}

impl Registry {
    /// Opens a registry on storage of its own.
    pub fn open(mut storage: Box<dyn Storage>) -> std::result::Result<Registry, StorageError> {
        let size = if storage.durable() {
            storage.len(JOURNAL)?
        } else {
            0
        };
        let bytes = if size > 0 {
            storage.read(JOURNAL, 0, size as usize)?
        } else {
            bytes::Bytes::new()
        };
        let mut registry = Registry {
            storage,
            schemas: BTreeMap::new(),
            ids: BTreeMap::new(),
            subjects: BTreeMap::new(),
            global: Level::Backward,
            levels: BTreeMap::new(),
        };
        let mut rest = &bytes[..];
        while let Some((payload, after)) = next_frame(rest) {
            let record = serde_json::from_slice(payload)
                .map_err(|e| StorageError::new("replay", JOURNAL, std::io::Error::other(e)))?;
            registry.apply(record);
            rest = after;
        }
        if !rest.is_empty() {
            registry
                .storage
                .truncate(JOURNAL, size - rest.len() as u64)?;
        }
        Ok(registry)
    }

    fn record(&mut self, record: Record) -> Result<()> {
        if self.storage.durable() {
            self.storage.append(JOURNAL, &[&frame(&record)?])?;
        }
        self.apply(record);
        Ok(())
    }

    fn apply(&mut self, record: Record) {
        match record {
            Record::Schema { id, schema } => {
                if let Some(normal) = compat::normal_form(&schema) {
                    self.ids.insert(normal, id);
                }
                self.schemas.insert(id, schema);
            }
            Record::Version(v) => {
                let versions = self.subjects.entry(v.subject.clone()).or_default();
                match versions.iter_mut().find(|have| have.version == v.version) {
                    Some(have) => *have = v,
                    None => versions.push(v),
                }
            }
            Record::SubjectForgotten { subject } => {
                self.subjects.remove(&subject);
                self.levels.remove(&subject);
            }
            Record::Level {
                subject: None,
                level,
            } => self.global = level.unwrap_or(Level::Backward),
            Record::Level {
                subject: Some(subject),
                level: Some(level),
            } => {
                self.levels.insert(subject, level);
            }
            Record::Level {
                subject: Some(subject),
                level: None,
            } => {
                self.levels.remove(&subject);
            }
        }
    }

    pub fn subjects(&self, deleted: bool) -> Vec<String> {
        let shown = |v: &&Version| deleted || !v.deleted;
        self.subjects
            .iter()
            .filter(|(_, list)| list.iter().any(|v| shown(&v)))
            .map(|(s, _)| s.clone())
            .collect()
    }

    /// The visible versions of a subject, oldest first.
    pub fn versions(&self, subject: &str) -> Result<Vec<Version>> {
        let all = self
            .subjects
            .get(subject)
            .ok_or_else(|| Refused::subject(subject))?;
        let live: Vec<Version> = all.iter().filter(|v| !v.deleted).cloned().collect();
        if live.is_empty() {
            Err(Refused::subject(subject))
        } else {
            Ok(live)
        }
    }

    /// A version by number or `latest`, with its schema.
    pub fn version(&self, subject: &str, version: &str) -> Result<(Version, String)> {
        let versions = self.versions(subject)?;
        let found = match version {
            "latest" | "-1" => versions.last(),
            number => {
                let wanted: i32 = number.parse().ok().filter(|n| *n > 0).ok_or_else(|| {
                    refused(
                        422,
                        42202,
                        format!("The specified version '{number}' is not a valid version id."),
                    )
                })?;
                versions.iter().find(|v| v.version == wanted)
            }
        };
        let found = found.ok_or_else(|| Refused::version(version))?;
        Ok((found.clone(), self.schema(found.id)?))
    }

    pub fn schema(&self, id: i32) -> Result<String> {
        self.schemas.get(&id).cloned().ok_or_else(Refused::schema)
    }

    /// The versions that use an id.
    pub fn uses(&self, id: i32) -> Result<Vec<Version>> {
        self.schema(id)?;
        Ok(self
            .subjects
            .values()
            .flatten()
            .filter(|v| v.id == id && !v.deleted)
            .cloned()
            .collect())
    }

    /// Registers a schema under a subject; returns its id.
    pub fn register(&mut self, subject: &str, schema: &str) -> Result<i32> {
        let normal = compat::parse(schema)?;
        let versions: Vec<Version> = self.subjects.get(subject).cloned().unwrap_or_default();
        let known = self.ids.get(&normal).copied();
        if let Some(id) = known
            && versions.iter().any(|v| v.id == id && !v.deleted)
        {
            return Ok(id);
        }
        let problems = self.problems(subject, schema, &versions)?;
        if !problems.is_empty() {
            let message = format!(
                "Schema being registered is incompatible with an earlier schema for subject \"{subject}\": {}",
                problems.join("; ")
            );
            return Err(refused(409, 409, message));
        }
        let id = match known {
            Some(id) => id,
            None => {
                let id = self.schemas.keys().last().copied().unwrap_or(0) + 1;
                self.record(Record::Schema {
                    id,
                    schema: schema.to_owned(),
                })?;
                id
            }
        };
        let version = versions.iter().map(|v| v.version).max().unwrap_or(0) + 1;
        self.record(Record::Version(Version {
            subject: subject.to_owned(),
            version,
            id,
            deleted: false,
        }))?;
        Ok(id)
    }

    /// What stands against a schema as the subject's next version.
    fn problems(&self, subject: &str, schema: &str, versions: &[Version]) -> Result<Vec<String>> {
        let level = self.level_of(subject);
        let live: Vec<&Version> = versions.iter().filter(|v| !v.deleted).collect();
        let against: &[&Version] = if level.transitive() {
            &live
        } else {
            &live[live.len().saturating_sub(1)..]
        };
        let mut problems = Vec::new();
        for v in against {
            problems.extend(compat::check(level, schema, &self.schema(v.id)?)?);
        }
        Ok(problems)
    }

    /// Looks a schema up under a subject.
    pub fn lookup(&self, subject: &str, schema: &str) -> Result<(Version, String)> {
        let versions = self.versions(subject)?;
        let normal = compat::parse(schema)?;
        let id = self.ids.get(&normal).copied().ok_or_else(Refused::schema)?;
        let found = versions
            .into_iter()
            .find(|v| v.id == id)
            .ok_or_else(Refused::schema)?;
        let text = self.schema(id)?;
        Ok((found, text))
    }

    /// What stands against a schema compared with one version (or, with None, with what the level asks for).
    pub fn compatible(
        &self,
        subject: &str,
        version: Option<&str>,
        schema: &str,
    ) -> Result<Vec<String>> {
        compat::parse(schema)?;
        match version {
            None => {
                let versions = self.versions(subject).unwrap_or_default();
                self.problems(subject, schema, &versions)
            }
            Some(version) => {
                let (_, earlier) = self.version(subject, version)?;
                compat::check(self.level_of(subject), schema, &earlier)
            }
        }
    }

    /// The level in force for a subject.
    pub fn level_of(&self, subject: &str) -> Level {
        self.levels.get(subject).copied().unwrap_or(self.global)
    }

    /// A subject's own level, or the global one.
    pub fn level(&self, subject: Option<&str>) -> Result<Level> {
        match subject {
            None => Ok(self.global),
            Some(s) => self.levels.get(s).copied().ok_or_else(|| {
                refused(
                    404,
                    40408,
                    format!("Subject '{s}' does not have subject-level compatibility configured"),
                )
            }),
        }
    }

    /// Sets (or, with None, removes) a level.
    pub fn set_level(
        &mut self,
        subject: Option<&str>,
        level: Option<&str>,
    ) -> Result<Option<Level>> {
        let level = level
            .map(|l| Level::parse(l).ok_or_else(|| Refused::level(l)))
            .transpose()?;
        self.record(Record::Level {
            subject: subject.map(str::to_owned),
            level,
        })?;
        Ok(level)
    }

    /// Deletes one version softly; returns its number.
    pub fn delete_version(&mut self, subject: &str, version: &str) -> Result<i32> {
        let (found, _) = self.version(subject, version)?;
        let number = found.version;
        self.record(Record::Version(Version {
            deleted: true,
            ..found
        }))?;
        Ok(number)
    }

    /// Deletes a subject: softly, or for good once it is softly deleted. Returns its versions.
    pub fn delete_subject(&mut self, subject: &str, permanent: bool) -> Result<Vec<i32>> {
        if permanent {
            let all = self
                .subjects
                .get(subject)
                .ok_or_else(|| Refused::subject(subject))?;
            if all.iter().any(|v| !v.deleted) {
                let message = format!(
                    "Subject '{subject}' was not deleted first before being permanently deleted"
                );
                return Err(refused(404, 40405, message));
            }
            let numbers = all.iter().map(|v| v.version).collect();
            self.record(Record::SubjectForgotten {
                subject: subject.to_owned(),
            })?;
            return Ok(numbers);
        }
        let live = self.versions(subject)?;
        let numbers = live.iter().map(|v| v.version).collect();
        for v in live {
            self.record(Record::Version(Version { deleted: true, ..v }))?;
        }
        Ok(numbers)
    }
}

#[cfg(test)]
mod tests;
