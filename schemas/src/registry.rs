//! The schema registry's client: Confluent's REST interface, as Confluent Schema Registry,
//! Apicurio (`/apis/ccompat/v7`) and FinLake's own development registry speak it.
//!
//! At start: for every subject, ask whether our schemas are compatible with what is registered,
//! register what is missing, return the ids. Later: fetch writer schemas by id. It runs on a
//! thread of its own, so that it can be called from synchronous and asynchronous code alike, and
//! never on the path of a record. Credentials go into requests and nowhere else.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use reqwest_registry as reqwest;
use schema_registry_converter::async_impl::schema_registry::{
    SrSettings, get_schema_by_id, post_schema,
};
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::{RawError, SchemaType, SuppliedSchema};
use serde::Deserialize;
use serde_json::json;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::schema::{Kind, both_ways};
use crate::topics;

/// Where the registry is and who asks.
#[derive(Clone)]
pub struct RegistryConfig {
    /// Base URLs, tried in order. `user:password@` in them is used for basic authentication.
    pub urls: Vec<String>,
    /// Basic authentication; overrides what the URL says.
    pub user: Option<String>,
    pub password: Option<String>,
    /// Bearer token; overrides basic authentication.
    pub token: Option<String>,
    /// Register schemas that are missing. If false, a missing one is an error.
    pub register: bool,
    /// For one request.
    pub timeout: Duration,
}

impl RegistryConfig {
    /// One URL or several separated by commas, defaults for the rest.
    pub fn new(urls: &str) -> RegistryConfig {
        RegistryConfig {
            urls: urls
                .split(',')
                .map(|url| url.trim().trim_end_matches('/').to_owned())
                .filter(|url| !url.is_empty())
                .collect(),
            user: None,
            password: None,
            token: None,
            register: true,
            timeout: Duration::from_secs(5),
        }
    }
}

/// Without credentials.
impl fmt::Debug for RegistryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let urls: Vec<_> = self
            .urls
            .iter()
            .map(|url| without_credentials(url))
            .collect();
        f.debug_struct("RegistryConfig")
            .field("urls", &urls)
            .field("register", &self.register)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// The schemas of one topic's values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub topic: String,
    pub kind: Kind,
}

impl Subject {
    pub fn new(topic: &str, kind: Kind) -> Subject {
        Subject {
            topic: topic.to_owned(),
            kind,
        }
    }

    /// Every subject of the standard topics.
    pub fn all() -> Vec<Subject> {
        vec![
            Subject::new(topics::TICKS, Kind::Tick),
            Subject::new(topics::OHLCV, Kind::Bar),
            Subject::new(topics::LIVE, Kind::Bar),
            Subject::new(topics::METRICS, Kind::Metrics),
            Subject::new(topics::LEDGER, Kind::Ledger),
            Subject::new(topics::BARS, Kind::VendorBar),
            Subject::new(topics::BARS, Kind::Action),
            Subject::new(topics::BARS, Kind::Assertion),
            Subject::new(topics::ACTIONS, Kind::Action),
            Subject::new(topics::BREAKS, Kind::Break),
            Subject::new(topics::KLINES, Kind::Kline),
        ]
    }

    /// The subject in the registry: `<topic>-value`, and for the one topic that holds records of
    /// several types `<topic>-<record's full name>`, so that each of them evolves by itself.
    pub fn name(&self) -> String {
        match self.topic.as_str() {
            topics::BARS => format!("{}-finlake.{}", self.topic, self.kind.record_name()),
            topic => topics::value_subject(topic),
        }
    }
}

/// The registry gave no answer that settles the question: not there, busy, or refusing us.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the schema registry gave no answer ({0}); check its URL and credentials, it will be asked again"
)]
pub struct Unreachable(pub String);

/// Why the registry does not let us start.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RegistryError {
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// A schema of ours and one registered cannot read each other.
    #[error(
        "subject {subject}: version {version} of our schema is not compatible with what is \
         registered: {why}; register a compatible schema or use another topic"
    )]
    Incompatible {
        subject: String,
        version: u8,
        why: String,
    },
    /// Registration is switched off and the schema is missing.
    #[error(
        "subject {subject} lacks version {version} of our schema and registration is off; \
         register it, or allow registration"
    )]
    Missing { subject: String, version: u8 },
    /// The configuration cannot be used.
    #[error("schema registry: {0}; correct the configuration")]
    Config(String),
}

/// Outcome of a fetch by id.
pub(crate) enum Fetched {
    Schema(String),
    Unknown,
}

type Job = Box<dyn FnOnce(Arc<Client>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;
type Ids = BTreeMap<(Kind, u8), u32>;

/// Handle of the registry's thread; the thread ends with the handle.
pub(crate) struct Registry {
    jobs: mpsc::UnboundedSender<Job>,
}

impl Registry {
    pub(crate) fn connect(
        config: RegistryConfig,
        subjects: &[Subject],
    ) -> Result<(Registry, Ids), RegistryError> {
        let registry = Registry::start(config)?;
        let subjects = subjects.to_vec();
        let ids = registry
            .call(move |client| async move { client.prepare(&subjects).await })
            .unwrap_or_else(|| Err(Unreachable(STOPPED.to_owned()).into()))?;
        Ok((registry, ids))
    }

    /// Asks for what is there; checks and registers nothing.
    pub(crate) fn survey(
        config: RegistryConfig,
        subjects: &[Subject],
    ) -> Result<(Registry, Ids, BTreeMap<String, String>), RegistryError> {
        let registry = Registry::start(config)?;
        let subjects = subjects.to_vec();
        let (ids, newest) = registry
            .call(move |client| async move { client.survey(&subjects).await })
            .unwrap_or_else(|| Err(Unreachable(STOPPED.to_owned())))?;
        Ok((registry, ids, newest))
    }

    pub(crate) async fn connect_async(
        config: RegistryConfig,
        subjects: &[Subject],
    ) -> Result<(Registry, Ids), RegistryError> {
        let registry = Registry::start(config)?;
        let subjects = subjects.to_vec();
        let (tell, told) = oneshot::channel();
        registry.send(move |client| async move {
            // The caller may have gone; then nobody wants to know.
            let _ = tell.send(client.prepare(&subjects).await);
        });
        let ids = told
            .await
            .unwrap_or_else(|_| Err(Unreachable(STOPPED.to_owned()).into()))?;
        Ok((registry, ids))
    }

    pub(crate) fn fetch(&self, id: u32) -> Result<Fetched, Unreachable> {
        self.call(move |client| async move { client.fetch(id).await })
            .unwrap_or_else(|| Err(Unreachable(STOPPED.to_owned())))
    }

    fn start(config: RegistryConfig) -> Result<Registry, RegistryError> {
        let client = Arc::new(Client::new(&config)?);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| RegistryError::Config(format!("cannot start its runtime: {e}")))?;
        let (jobs, mut inbox) = mpsc::unbounded_channel::<Job>();
        std::thread::Builder::new()
            .name("schema-registry".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    while let Some(job) = inbox.recv().await {
                        job(Arc::clone(&client)).await;
                    }
                });
            })
            .map_err(|e| RegistryError::Config(format!("cannot start its thread: {e}")))?;
        Ok(Registry { jobs })
    }

    fn send<F, Fut>(&self, job: F)
    where
        F: FnOnce(Arc<Client>) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        // A stopped thread shows at the answer's channel, which the job is dropped with.
        let _ = self
            .jobs
            .send(Box::new(move |client| Box::pin(job(client))));
    }

    fn call<T, F, Fut>(&self, job: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Client>) -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
    {
        let (tell, told) = std::sync::mpsc::channel();
        self.send(move |client| async move {
            let _ = tell.send(job(client).await);
        });
        told.recv().ok()
    }
}

const STOPPED: &str = "its client thread has stopped";

/// The requests themselves.
struct Client {
    settings: SrSettings,
    http: reqwest::Client,
    urls: Vec<String>,
    user: Option<(String, Option<String>)>,
    token: Option<String>,
    register: bool,
}

/// An HTTP answer other than success.
struct Refused {
    status: u16,
    code: u32,
    message: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {} {} {}", self.status, self.code, self.message)
    }
}

impl Client {
    fn new(config: &RegistryConfig) -> Result<Client, RegistryError> {
        let bad = |why: String| RegistryError::Config(why);
        // One provider per process; somebody else's choice is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut urls = Vec::new();
        let mut user = None;
        let mut local = true;
        for url in &config.urls {
            let parsed = reqwest::Url::parse(url)
                .map_err(|e| bad(format!("{} is not a URL: {e}", without_credentials(url))))?;
            local &= matches!(parsed.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
            if !parsed.username().is_empty() {
                let password = parsed.password().map(percent_decoded);
                user.get_or_insert((percent_decoded(parsed.username()), password));
            }
            urls.push(without_credentials(url));
        }
        let Some(first) = urls.first() else {
            return Err(bad("no URL is given".to_owned()));
        };
        if let Some(name) = &config.user {
            user = Some((name.clone(), config.password.clone()));
        }
        let mut settings = SrSettings::new_builder(first.clone());
        for url in &urls[1..] {
            settings.add_url(url.clone());
        }
        if let Some((name, password)) = &user {
            settings.set_basic_authorization(name, password.as_deref());
        }
        if let Some(token) = &config.token {
            settings.set_token_authorization(token);
        }
        settings.set_timeout(config.timeout);
        let mut http = reqwest::Client::builder().timeout(config.timeout);
        if local {
            // A proxy for the outside world cannot reach this machine's loopback.
            settings.no_proxy();
            http = http.no_proxy();
        }
        Ok(Client {
            settings: settings.build().map_err(|e| bad(e.to_string()))?,
            http: http.build().map_err(|e| bad(e.to_string()))?,
            urls,
            user,
            token: config.token.clone(),
            register: config.register,
        })
    }

    /// Compatibility first, for all subjects; only then is anything registered.
    async fn prepare(&self, subjects: &[Subject]) -> Result<Ids, RegistryError> {
        for subject in subjects {
            self.check(subject).await?;
        }
        let mut ids = Ids::new();
        for subject in subjects {
            for (at, text) in subject.kind.versions().iter().enumerate() {
                let version = at as u8 + 1;
                let id = self.id_of(subject, version, text).await?;
                // One content, several subjects: the first one's id is what we write.
                ids.entry((subject.kind, version)).or_insert(id);
            }
        }
        Ok(ids)
    }

    /// Ids of those of our schemas that are registered, and the newest schema of each subject.
    async fn survey(
        &self,
        subjects: &[Subject],
    ) -> Result<(Ids, BTreeMap<String, String>), Unreachable> {
        let (mut ids, mut newest) = (Ids::new(), BTreeMap::new());
        for subject in subjects {
            let name = subject.name();
            let Some(latest) = self.latest(&name).await? else {
                continue;
            };
            for (at, text) in subject.kind.versions().iter().enumerate() {
                if let Some(id) = self.lookup(&name, text).await? {
                    ids.entry((subject.kind, at as u8 + 1)).or_insert(id);
                }
            }
            newest.insert(name, latest);
        }
        Ok((ids, newest))
    }

    /// Our versions against the newest registered one: by our own rule in both directions,
    /// whatever level the subject is set to, and by the registry's rule.
    async fn check(&self, subject: &Subject) -> Result<(), RegistryError> {
        let name = subject.name();
        let Some(latest) = self.latest(&name).await? else {
            return Ok(());
        };
        for (at, text) in subject.kind.versions().iter().enumerate() {
            let version = at as u8 + 1;
            let incompatible = |why: String| RegistryError::Incompatible {
                subject: name.clone(),
                version,
                why,
            };
            both_ways(text, &latest).map_err(incompatible)?;
            if self.lookup(&name, text).await?.is_some() {
                continue;
            }
            if let Some(why) = self.refusal(&name, text).await? {
                return Err(incompatible(why));
            }
        }
        Ok(())
    }

    async fn latest(&self, subject: &str) -> Result<Option<String>, Unreachable> {
        #[derive(Deserialize)]
        struct Answer {
            schema: String,
        }
        let path = format!("/subjects/{}/versions/latest", escaped(subject));
        match self.request(&path, None).await? {
            Ok(body) => Ok(Some(parsed::<Answer>(&body)?.schema)),
            Err(refused) if refused.status == 404 && is_not_found(refused.code) => Ok(None),
            Err(refused) => Err(Unreachable(refused.to_string())),
        }
    }

    /// The id under which a schema is registered in a subject.
    async fn lookup(&self, subject: &str, schema: &str) -> Result<Option<u32>, Unreachable> {
        #[derive(Deserialize)]
        struct Answer {
            id: u32,
        }
        let path = format!("/subjects/{}", escaped(subject));
        match self.request(&path, Some(schema)).await? {
            Ok(body) => Ok(Some(parsed::<Answer>(&body)?.id)),
            Err(refused) if refused.status == 404 && is_not_found(refused.code) => Ok(None),
            Err(refused) => Err(Unreachable(refused.to_string())),
        }
    }

    /// Why the registry would refuse a schema, `None` if it would not.
    async fn refusal(&self, subject: &str, schema: &str) -> Result<Option<String>, Unreachable> {
        #[derive(Deserialize)]
        struct Answer {
            is_compatible: bool,
            #[serde(default)]
            messages: Vec<String>,
        }
        let path = format!(
            "/compatibility/subjects/{}/versions/latest?verbose=true",
            escaped(subject)
        );
        match self.request(&path, Some(schema)).await? {
            Ok(body) => {
                let answer = parsed::<Answer>(&body)?;
                Ok(
                    (!answer.is_compatible).then(|| match answer.messages.is_empty() {
                        true => "the registry gives no reason".to_owned(),
                        false => answer.messages.join("; "),
                    }),
                )
            }
            // Nothing to be incompatible with.
            Err(refused) if refused.status == 404 && is_not_found(refused.code) => Ok(None),
            Err(refused) if refused.status == 422 => Ok(Some(refused.to_string())),
            Err(refused) => Err(Unreachable(refused.to_string())),
        }
    }

    async fn id_of(
        &self,
        subject: &Subject,
        version: u8,
        text: &str,
    ) -> Result<u32, RegistryError> {
        let name = subject.name();
        if let Some(id) = self.lookup(&name, text).await? {
            return Ok(id);
        }
        if !self.register {
            return Err(RegistryError::Missing {
                subject: name,
                version,
            });
        }
        let supplied = SuppliedSchema::new(None, SchemaType::Avro, text.to_owned());
        match post_schema(&self.settings, name.clone(), supplied).await {
            Ok(registered) => Ok(registered.id),
            // Somebody else's registration came between the question and this.
            Err(e) if raw_error(&e).is_some_and(|raw| matches!(raw.error_code, 409 | 42_201)) => {
                Err(RegistryError::Incompatible {
                    subject: name,
                    version,
                    why: e.to_string(),
                })
            }
            Err(e) => Err(Unreachable(e.to_string()).into()),
        }
    }

    async fn fetch(&self, id: u32) -> Result<Fetched, Unreachable> {
        match get_schema_by_id(id, &self.settings).await {
            Ok(schema) if schema.schema_type == SchemaType::Avro => {
                Ok(Fetched::Schema(schema.schema))
            }
            // Known and not Avro: as the text stands it is unreadable, which is the right answer.
            Ok(schema) => Ok(Fetched::Schema(schema.schema)),
            Err(e) if raw_error(&e).is_some_and(|raw| is_not_found(raw.error_code)) => {
                Ok(Fetched::Unknown)
            }
            Err(e) => Err(Unreachable(e.to_string())),
        }
    }

    /// GET, or POST with a schema, at the first URL that answers.
    async fn request(
        &self,
        path: &str,
        schema: Option<&str>,
    ) -> Result<Result<Vec<u8>, Refused>, Unreachable> {
        let mut failure = Unreachable("no URL is given".to_owned());
        for base in &self.urls {
            let url = format!("{base}{path}");
            let request = match schema {
                None => self.http.get(url),
                Some(text) => self
                    .http
                    .post(url)
                    .header("content-type", "application/vnd.schemaregistry.v1+json")
                    .body(json!({"schema": text, "schemaType": "AVRO"}).to_string()),
            };
            let request = request.header("accept", "application/vnd.schemaregistry.v1+json");
            let request = match (&self.token, &self.user) {
                (Some(token), _) => request.bearer_auth(token),
                (None, Some((name, password))) => request.basic_auth(name, password.as_deref()),
                (None, None) => request,
            };
            let answer = match request.send().await {
                Ok(answer) => answer,
                Err(e) => {
                    failure = Unreachable(chain(&e));
                    continue;
                }
            };
            let status = answer.status().as_u16();
            let body = match answer.bytes().await {
                Ok(body) => body.to_vec(),
                Err(e) => {
                    failure = Unreachable(chain(&e));
                    continue;
                }
            };
            if (200..300).contains(&status) {
                return Ok(Ok(body));
            }
            let refused = refused(status, &body);
            if status >= 500 || status == 429 {
                failure = Unreachable(refused.to_string());
                continue;
            }
            return Ok(Err(refused));
        }
        Err(failure)
    }
}

fn refused(status: u16, body: &[u8]) -> Refused {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        error_code: u32,
        #[serde(default)]
        message: String,
    }
    let (code, message) = match serde_json::from_slice::<Answer>(body) {
        Ok(answer) => (answer.error_code, answer.message),
        Err(_) => (0, String::new()),
    };
    Refused {
        status,
        code,
        message,
    }
}

fn parsed<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Unreachable> {
    serde_json::from_slice(body)
        .map_err(|e| Unreachable(format!("its answer is not what a registry says: {e}")))
}

/// Subject, version or schema not found. A bare 404 is no such answer: it may come from a proxy or
/// a wrong path, and must never make a record poison.
fn is_not_found(code: u32) -> bool {
    (40_401..=40_403).contains(&code)
}

fn raw_error(error: &SRCError) -> Option<&RawError> {
    error.source()?.downcast_ref::<RawError>()
}

/// An error with its causes: reqwest's own text leaves out why a connection failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn escaped(subject: &str) -> String {
    let mut out = String::with_capacity(subject.len());
    for byte in subject.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes
            .get(at + 1..at + 3)
            .filter(|_| bytes[at] == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match hex {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A URL as it may be shown and sent: without `user:password@`.
fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return match url.rsplit_once('@') {
            Some((_, host)) => host.to_owned(),
            None => url.to_owned(),
        };
    };
    let end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit('@').next().unwrap_or(authority);
    format!("{scheme}://{host}{path}")
}
