//! `finlake demo`: broker, registry, stream and sink in one process, on a made-up market or on captures.
//!
//! It is the real application on the embedded broker: nothing here takes part in processing. It produces, waits until
//! the tables hold what was produced, asks the tables, and prints.

pub mod market;
mod show;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use finlake_devkafka::{DevKafka, Storage};
use finlake_schemas::topics;
use tokio::runtime::Handle;

use crate::app::{App, Sinks, Streams, audit_once, ends, sink_breaks, start_audit};
use crate::audit::Audit;
use crate::cli::{DemoArgs, Global};
use crate::config::{Config, Inputs};
use crate::ingest::{self, IngestOptions, KafkaOut, Out};
use crate::output::{Progress, remark};

/// Longest wait for the tables before the demo says that something is stuck.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs the demo.
///
/// # Errors
/// Anything that a user has to know; the data folder is left as it is.
pub fn run(global: &Global, args: &DemoArgs, runtime: &Handle) -> Result<()> {
    let began = Instant::now();
    let data = data_folder(global)?;
    let broker = DevKafka::start(finlake_devkafka::Config {
        storage: Storage::Folder(data.join("kafka")),
        ..finlake_devkafka::Config::default()
    })
    .context("embedded broker")?;
    let config = config(global, args, &data, &broker)?;
    let serve = config.serve.listen;
    let app = runtime.block_on(App::prepare(config, true))?;
    let (_server, endpoint) = start_endpoint(&app, serve, runtime);
    remark(
        global.quiet,
        &format!(
            "embedded broker {}, registry {}, {} partitions{}",
            broker.bootstrap(),
            broker.registry_url().unwrap_or_default(),
            app.config.kafka.partitions,
            endpoint
                .map(|e| format!(", metrics http://{e}/metrics"))
                .unwrap_or_default(),
        ),
    );

    let streams = Streams::start(&app)?;
    let sinks = Sinks::start(&app, runtime)?;
    let audit = start_audit(&app, runtime)?;
    let demo = Demo {
        global,
        app: &app,
        streams: &streams,
        sinks: &sinks,
    };
    let story = demo.feed(args)?;

    if args.exit {
        drain(&app, streams, sinks, audit, global.quiet, runtime)?;
        show::results(&app, story.as_ref(), began.elapsed(), runtime, &data)?;
    } else {
        demo.settle(story.as_ref())?;
        show::results(&app, story.as_ref(), began.elapsed(), runtime, &data)?;
        remark(
            false,
            "\nThe application keeps running (Ctrl-C ends it). Send trades to market.ticks, or ask it in another terminal.",
        );
        runtime.block_on(crate::run::until_signal());
        drain(&app, streams, sinks, audit, global.quiet, runtime)?;
    }
    broker.shutdown();
    Ok(())
}

/// What the demo remembers for the as-of query.
pub struct Story {
    /// Stable frontier (µs) before the late group was produced.
    pub frontier: i64,
    pub late: usize,
    pub poison: usize,
    pub duplicates: usize,
}

/// `--data DIR`, or a new folder that is kept and named.
fn data_folder(global: &Global) -> Result<PathBuf> {
    let data = match &global.data {
        Some(dir) => std::path::absolute(dir)?,
        None => {
            let stamp = crate::output::format_instant(now_us()).replace([':', '.'], "");
            std::env::temp_dir().join(format!("finlake-demo-{stamp}-{}", std::process::id()))
        }
    };
    std::fs::create_dir_all(&data).with_context(|| format!("data folder {}", data.display()))?;
    Ok(data)
}

fn now_us() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as i64)
}

/// The configuration of the data folder, with the embedded broker's addresses.
fn config(
    global: &Global,
    args: &DemoArgs,
    data: &std::path::Path,
    broker: &DevKafka,
) -> Result<Config> {
    let mut inputs: Inputs = global.inputs();
    inputs.data = Some(data.to_owned());
    let chosen = |inputs: &Inputs, key: &str| inputs.overrides.iter().any(|(k, _, _)| k == key);
    let mut demo: Vec<(&str, String)> = vec![
        ("kafka.bootstrap_servers", broker.bootstrap()),
        ("registry.url", broker.registry_url().unwrap_or_default()),
    ];
    for (key, value) in [
        ("lake.commit_interval", "1s"),
        ("serve.listen", "127.0.0.1:0"),
    ] {
        if !chosen(&inputs, key) {
            demo.push((key, value.to_owned()));
        }
    }
    if let Some(intervals) = &args.intervals {
        demo.push(("stream.intervals", intervals.clone()));
    }
    for (key, value) in demo {
        inputs
            .overrides
            .push((key.to_owned(), value, "demo".into()));
    }
    Ok(Config::load(&inputs)?)
}

fn start_endpoint(
    app: &App,
    listen: Option<SocketAddr>,
    runtime: &Handle,
) -> (Option<crate::serve::Server>, Option<SocketAddr>) {
    let Some(listen) = listen else {
        return (None, None);
    };
    match crate::serve::start(
        runtime,
        listen,
        app.metrics.registry.clone(),
        std::sync::Arc::new(|| Ok(())),
    ) {
        Ok(server) => {
            let at = server.address();
            (Some(server), Some(at))
        }
        Err(e) => {
            tracing::warn!("no metrics endpoint: {e}");
            (None, None)
        }
    }
}

struct Demo<'a> {
    global: &'a Global,
    app: &'a App,
    streams: &'a Streams,
    sinks: &'a Sinks,
}

impl Demo<'_> {
    /// Produces everything; for the made-up market the late group comes after the first part is in the tables.
    fn feed(&self, args: &DemoArgs) -> Result<Option<Story>> {
        let properties: Vec<(String, String)> = self
            .app
            .config
            .kafka
            .client_properties()
            .0
            .into_iter()
            .collect();
        let mut out = KafkaOut::new(&properties, topics::TICKS)?;
        if !args.inputs.is_empty() {
            let options = IngestOptions {
                format: crate::commands::ingest::format(args.format),
                ..IngestOptions::default()
            };
            let inputs = ingest::open_inputs(&args.inputs, &options)?;
            let progress = Progress::new(self.global.quiet, "reading captures", "trades", None);
            let mut watch = crate::commands::ingest::Watch(&progress);
            let summary = ingest::run(inputs, &self.app.codec, &mut out, &options, &mut watch)?;
            progress.done();
            remark(
                self.global.quiet,
                &crate::commands::ingest::report(&summary),
            );
            self.wait(&ends(&self.app.config, topics::TICKS)?)?;
            return Ok(None);
        }
        let feed = market::feed(
            args.seed,
            args.symbols as usize,
            args.trades,
            &self.app.codec,
        )?;
        let total = feed.first.len() as u64;
        let progress = Progress::new(
            self.global.quiet,
            "producing a made-up market",
            "trades",
            Some(total),
        );
        for (i, m) in feed.first.iter().enumerate() {
            out.send(&m.key, &m.value)?;
            if i % 1_000 == 0 {
                progress.set(i as u64);
            }
        }
        out.finish()?;
        progress.set(total);
        progress.done();
        self.wait(&ends(&self.app.config, topics::TICKS)?)?;
        let frontier = self.frontier();
        for m in &feed.late {
            out.send(&m.key, &m.value)?;
        }
        out.finish()?;
        remark(
            self.global.quiet,
            &format!(
                "first part is in the tables; now {} trades that come hours late",
                feed.late.len()
            ),
        );
        self.wait(&ends(&self.app.config, topics::TICKS)?)?;
        Ok(Some(Story {
            frontier,
            late: feed.late.len(),
            poison: feed.poison,
            duplicates: feed.duplicates,
        }))
    }

    /// System time up to which every partition of every table is whole.
    fn frontier(&self) -> i64 {
        let status = self.sinks.status.lock();
        let all = status.positions.values().flatten();
        all.map(|p| p.frontier).min().unwrap_or(0)
    }

    /// Waits until the three tables that are made of `market.ticks` hold it up to `ends`.
    fn wait(&self, ends: &BTreeMap<i32, i64>) -> Result<()> {
        let total: i64 = ends.values().sum();
        let progress = Progress::new(
            self.global.quiet,
            "into the tables",
            "records",
            u64::try_from(total).ok(),
        );
        let began = Instant::now();
        loop {
            let done: i64 = {
                let status = self.sinks.status.lock();
                let of = |p: &i32, end: &i64| {
                    let at = status.positions.get(p)?;
                    // The fourth is of market.bars, which has positions of its own.
                    at.iter()
                        .take(3)
                        .map(|t| t.input_end)
                        .min()
                        .map(|got| got.min(*end))
                };
                ends.iter().map(|(p, end)| of(p, end).unwrap_or(0)).sum()
            };
            progress.set(u64::try_from(done).unwrap_or(0));
            if done >= total {
                progress.done();
                return Ok(());
            }
            if self.streams.ended() || self.sinks.ended() {
                bail!("a part of the application has stopped; see the log above");
            }
            if began.elapsed() > PATIENCE {
                bail!(
                    "the tables hold {done} of {total} records after {PATIENCE:?}; see the log above"
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Without `--exit`: a correction is sent at most every `stream.correct_every`.
    fn settle(&self, story: Option<&Story>) -> Result<()> {
        if story.is_some() {
            std::thread::sleep(self.app.config.stream.correct_every + Duration::from_millis(500));
            let goal = ends(&self.app.config, topics::TICKS)?;
            self.wait(&goal)?;
            std::thread::sleep(self.app.config.lake.commit_interval * 2);
        }
        Ok(())
    }
}

/// Ends when drained: inputs at their high watermark, corrections and checkpoints committed, one last heartbeat each,
/// and the tables at the last commit of every partition.
fn drain(
    app: &App,
    streams: Streams,
    sinks: Sinks,
    audit: Audit,
    quiet: bool,
    runtime: &Handle,
) -> Result<()> {
    remark(
        quiet,
        "draining: last corrections and checkpoints, last heartbeats, last snapshots",
    );
    streams.drain();
    streams.join()?;
    sinks.drain_to(ends(&app.config, topics::LEDGER)?);
    let began = Instant::now();
    while !sinks.ended() {
        if began.elapsed() > PATIENCE {
            bail!(
                "the sink has not reached the end of the ledger after {PATIENCE:?}; see the log above"
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    sinks.join()?;
    // Last, so that it has seen the last entries and the tables with them.
    audit.stop();
    audit.join()?;
    audit_once(app, runtime)?;
    sink_breaks(app, runtime)
}
