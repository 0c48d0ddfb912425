//! The TCP front: starts a thread with a runtime of its own, accepts connections, carries requests
//! into the [`Core`] and replies out.
//!
//! One lock holds the core and the replies that are waited for; a request is decoded before and
//! encoded after it. A timer task lets the core's time pass. This module must never hold the lock
//! across an await, and nothing in it decides anything about Kafka's semantics.

mod connection;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::{CreateTopicsRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};

use crate::core::{Client, Core, CoreConfig, Reply, Ticket};
use crate::faults::Faults;
use crate::registry::Registry;
use crate::storage::{self, FileStorage, MemoryStorage, StorageError};
use crate::wire::{Request, Response};

/// Where a broker keeps its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// In memory, gone with the broker.
    Memory,
    /// In a folder, created if need be; survives a kill -9. One broker at a time.
    Folder(PathBuf),
}

/// How to start a broker. Times are milliseconds.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// The host that clients are told; by default the one listened on.
    pub advertised_host: Option<String>,
    /// Where the schema registry listens; none without.
    pub registry: Option<SocketAddr>,
    pub storage: Storage,
    /// fsync after every write to the folder. Without it a loss of power may lose data, a kill not.
    pub sync: bool,
    /// How long the first member of an empty group waits for others.
    pub initial_rebalance_delay_ms: u64,
    /// How often transactions are checked for their timeout (Kafka: 10 s).
    pub txn_scan_interval_ms: u64,
    /// How often retention and compaction run.
    pub maintenance_interval_ms: u64,
    /// Create topics that clients ask for and that do not exist.
    pub auto_create_topics: bool,
}

impl Default for Config {
    fn default() -> Config {
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let core = CoreConfig::default();
        Config {
            listen: local,
            advertised_host: None,
            registry: Some(local),
            storage: Storage::Memory,
            sync: false,
            initial_rebalance_delay_ms: core.initial_rebalance_delay_ms,
            txn_scan_interval_ms: core.txn_scan_interval_ms,
            maintenance_interval_ms: core.maintenance_interval_ms,
            auto_create_topics: core.auto_create_topics,
        }
    }
}

/// Why a broker could not be started or asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("devkafka cannot listen on {addr}: {source}; choose another port or stop what uses it")]
    Listen {
        addr: SocketAddr,
        source: std::io::Error,
    },
    #[error("devkafka cannot start its thread: {0}")]
    Thread(#[source] std::io::Error),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("topic {topic} was not created: error {code} {message}")]
    CreateTopic {
        topic: String,
        code: i16,
        message: String,
    },
    #[error("devkafka has stopped")]
    Stopped,
}

struct State {
    core: Core,
    waiting: BTreeMap<Ticket, oneshot::Sender<Reply>>,
}

/// What connections, timer and handle share.
pub(crate) struct Shared {
    state: Mutex<State>,
    tickets: AtomicU64,
    /// When the timer task wakes up next.
    scheduled: AtomicI64,
    timer: Notify,
    clock: Clock,
    pub(crate) faults: Arc<Faults>,
}

/// Milliseconds since the epoch that never run backwards.
struct Clock {
    start: Instant,
    epoch_ms: i64,
}

impl Clock {
    fn new() -> Clock {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Clock {
            start: Instant::now(),
            epoch_ms: i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        }
    }

    fn now(&self) -> i64 {
        self.epoch_ms
            .saturating_add(i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX))
    }
}

/// The answer to a request: here, or on its way.
pub(crate) enum Submitted {
    Ready(Reply),
    Waiting(oneshot::Receiver<Reply>),
}

impl Shared {
    pub(crate) fn submit(&self, client: &Client, version: i16, request: Request) -> Submitted {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.core.handle(ticket, client, version, request, now);
        let mut own = None;
        deliver(&mut state, |t, reply| {
            if t == ticket {
                own = Some(reply);
                None
            } else {
                Some(reply)
            }
        });
        let submitted = match own {
            Some(reply) => Submitted::Ready(reply),
            None => {
                let (sender, receiver) = oneshot::channel();
                state.waiting.insert(ticket, sender);
                Submitted::Waiting(receiver)
            }
        };
        let deadline = state.core.next_deadline();
        drop(state);
        if deadline < self.scheduled.load(Ordering::Relaxed) {
            self.timer.notify_one();
        }
        submitted
    }

    /// Lets time pass for the core, again and again.
    async fn run_timer(&self) {
        loop {
            let now = self.clock.now();
            let deadline = {
                let mut state = self.state.lock();
                state.core.tick(now);
                deliver(&mut state, |_, reply| Some(reply));
                // Connections that are gone no longer wait.
                state.waiting.retain(|_, sender| !sender.is_closed());
                let deadline = state.core.next_deadline();
                self.scheduled.store(deadline, Ordering::Relaxed);
                deadline
            };
            let wait = u64::try_from(deadline.saturating_sub(self.clock.now()))
                .unwrap_or(0)
                .clamp(1, 60_000);
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(wait)) => {}
                () = self.timer.notified() => {}
            }
        }
    }
}

fn deliver(state: &mut State, mut keep: impl FnMut(Ticket, Reply) -> Option<Reply>) {
    for (ticket, reply) in state.core.take_replies() {
        if let Some(reply) = keep(ticket, reply)
            && let Some(sender) = state.waiting.remove(&ticket)
        {
            let _ = sender.send(reply); // the connection may be gone
        }
    }
}

/// A running broker. Dropping it stops it.
pub struct DevKafka {
    bootstrap: String,
    registry_url: Option<String>,
    cluster_id: String,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl DevKafka {
    /// Starts a broker (and registry) on a thread of its own; returns once it accepts connections.
    pub fn start(config: Config) -> Result<DevKafka, Error> {
        // Nothing here may block on a runtime: the caller may be on one.
        let bind = |addr: SocketAddr| {
            let listening =
                std::net::TcpListener::bind(addr).and_then(|l| l.set_nonblocking(true).map(|()| l));
            listening.map_err(|source| Error::Listen { addr, source })
        };
        let listener = bind(config.listen)?;
        let local = listener.local_addr().map_err(|source| Error::Listen {
            addr: config.listen,
            source,
        })?;
        let registry_listener = config.registry.map(bind).transpose()?;
        let host = config
            .advertised_host
            .clone()
            .unwrap_or_else(|| match config.listen.ip() {
                ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
                ip => ip.to_string(),
            });
        let clock = Clock::new();
        let core_config = CoreConfig {
            host: host.clone(),
            port: local.port(),
            seed: uuid::Uuid::new_v4().as_u64_pair().0,
            initial_rebalance_delay_ms: config.initial_rebalance_delay_ms,
            txn_scan_interval_ms: config.txn_scan_interval_ms,
            maintenance_interval_ms: config.maintenance_interval_ms,
            auto_create_topics: config.auto_create_topics,
            ..CoreConfig::default()
        };
        let storage: Box<dyn crate::storage::Storage> = match &config.storage {
            Storage::Memory => Box::new(MemoryStorage::new()),
            Storage::Folder(path) => Box::new(FileStorage::open(path, config.sync)?),
        };
        let core = Core::open(core_config, storage, clock.now())?;
        let cluster_id = core.cluster_id().to_owned();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                core,
                waiting: BTreeMap::new(),
            }),
            tickets: AtomicU64::new(1),
            scheduled: AtomicI64::new(i64::MAX),
            timer: Notify::new(),
            clock,
            faults: Arc::new(Faults::new()),
        });
        let mut registry_url = None;
        let mut registry = None;
        if let Some(listener) = registry_listener {
            let local = listener.local_addr().map_err(|source| Error::Listen {
                addr: config.listen,
                source,
            })?;
            let storage: Box<dyn crate::storage::Storage> = match &config.storage {
                Storage::Memory => Box::new(MemoryStorage::new()),
                Storage::Folder(path) => Box::new(FileStorage::unlocked(&path.join("registry"))?),
            };
            registry_url = Some(format!("http://{host}:{}", local.port()));
            registry = Some((listener, crate::registry::router(Registry::open(storage)?)));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let serving = shared.clone();
        let run = move || {
            runtime.block_on(async {
                let (listener, registry) = match listen(listener, registry) {
                    Ok(both) => both,
                    Err(error) => return tracing::error!(%error, "devkafka cannot listen"),
                };
                if let Some((listener, router)) = registry {
                    tokio::spawn(async move { axum::serve(listener, router).await });
                }
                tokio::select! {
                    () = connection::accept(listener, serving.clone()) => {}
                    () = serving.run_timer() => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
        };
        let thread = std::thread::Builder::new()
            .name("devkafka".to_owned())
            .spawn(run)
            .map_err(Error::Thread)?;
        let bootstrap = format!("{host}:{}", local.port());
        if let Storage::Folder(path) = &config.storage {
            let url = registry_url.as_deref().unwrap_or_default();
            storage::announce(path, &format!("{bootstrap}\n{url}\n"))?;
        }
        Ok(DevKafka {
            bootstrap,
            registry_url,
            cluster_id,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The broker that another process runs on this folder: what clients take as `bootstrap.servers`,
    /// and the registry's URL, empty without one.
    pub fn running(folder: &Path) -> Option<(String, String)> {
        let text = storage::announced(folder)?;
        let (bootstrap, url) = text.split_once('\n')?;
        Some((bootstrap.to_owned(), url.trim_end().to_owned()))
    }

    /// What clients take as `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        self.bootstrap.clone()
    }

    /// The schema registry's URL, if there is one.
    pub fn registry_url(&self) -> Option<String> {
        self.registry_url.clone()
    }

    /// The cluster's id; a data folder keeps its own.
    pub fn cluster_id(&self) -> String {
        self.cluster_id.clone()
    }

    /// Tells clients another port from now on: that of a proxy in front of this broker.
    pub fn advertise_port(&self, port: u16) {
        self.shared.state.lock().core.set_port(port);
    }

    /// Faults to inject into this broker.
    pub fn faults(&self) -> Arc<Faults> {
        self.shared.faults.clone()
    }

    /// Creates a topic unless there is one of that name (whatever its partitions and settings).
    pub fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        configs: &[(&str, &str)],
    ) -> Result<(), Error> {
        const ALREADY_EXISTS: i16 = 36;
        let text = |s: &str| StrBytes::from_string(s.to_owned());
        let configs = configs.iter().map(|(k, v)| {
            CreatableTopicConfig::default()
                .with_name(text(k))
                .with_value(Some(text(v)))
        });
        let topic = CreatableTopic::default()
            .with_name(TopicName(text(name)))
            .with_num_partitions(partitions)
            .with_replication_factor(1)
            .with_configs(configs.collect());
        let request =
            Request::CreateTopics(CreateTopicsRequest::default().with_topics(vec![topic]));
        let Submitted::Ready(Reply::Send(response)) =
            self.shared.submit(&Client::default(), 7, request)
        else {
            return Err(Error::Stopped);
        };
        let Response::CreateTopics(response) = *response else {
            return Err(Error::Stopped);
        };
        match response.topics.first() {
            Some(t) if t.error_code != 0 && t.error_code != ALREADY_EXISTS => {
                Err(Error::CreateTopic {
                    topic: name.to_owned(),
                    code: t.error_code,
                    message: t.error_message.as_deref().unwrap_or_default().to_owned(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Stops the broker and waits until its port and folder are free again.
    pub fn shutdown(self) {
        drop(self);
    }
}

type Std = std::net::TcpListener;

/// Hands the bound sockets to the runtime that this is called on.
fn listen(
    broker: Std,
    registry: Option<(Std, Router)>,
) -> std::io::Result<(TcpListener, Option<(TcpListener, Router)>)> {
    let registry = registry
        .map(|(l, router)| TcpListener::from_std(l).map(|l| (l, router)))
        .transpose()?;
    Ok((TcpListener::from_std(broker)?, registry))
}

impl Drop for DevKafka {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the devkafka thread ended by a panic");
        }
    }
}

impl std::fmt::Debug for DevKafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DevKafka")
            .field("bootstrap", &self.bootstrap)
            .finish_non_exhaustive()
    }
}
