//! `finlake run`: roles of the application until a signal ends them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::runtime::Handle;

use crate::app::{App, Sinks, Streams, audit_once, ends, sink_breaks, start_audit};
use crate::audit::{Audit, Audited};
use crate::cli::{Global, Role, RunArgs};
use crate::commands::{DIFFERS, SAME, UNCHECKED};
use crate::config::Config;
use crate::output::remark;

/// How often it looks whether a role has ended by itself; a signal is heard at once.
const WATCH: Duration = Duration::from_secs(1);

/// Waits for SIGINT or SIGTERM.
pub async fn until_signal() {
    let term = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = term => {}
    }
}

/// Runs the roles. Gives the exit code: 0; of a caught-up audit 1 if it knows of open breaks, 2 if it could not check.
///
/// # Errors
/// What a user has to know; the process should be started again by its supervisor.
pub fn run(global: &Global, config: Config, args: &RunArgs, runtime: &Handle) -> Result<u8> {
    let listen = config.serve.listen;
    let app = runtime.block_on(App::prepare(config, !args.no_create_topics))?;
    let streams = args
        .roles
        .contains(&Role::Stream)
        .then(|| Streams::start(&app))
        .transpose()?;
    let sinks = args
        .roles
        .contains(&Role::Sink)
        .then(|| Sinks::start(&app, runtime))
        .transpose()?;
    let audits = args.roles.contains(&Role::Audit);
    // One that is to end reads the ledger once, when the others are done.
    let audit = (audits && !args.until_caught_up)
        .then(|| start_audit(&app, runtime))
        .transpose()?;
    let sink_status = sinks.as_ref().map(|s| s.status.clone());
    let ready = Arc::new(move || match &sink_status {
        Some(status) if !status.lock().joined => {
            Err("the sink has not joined its group yet".to_owned())
        }
        _ => Ok(()),
    });
    let server = listen
        .map(|at| crate::serve::start(runtime, at, app.metrics.registry.clone(), ready))
        .transpose()?;
    if let Some(server) = &server {
        remark(
            global.quiet,
            &format!("metrics http://{}/metrics", server.address()),
        );
    }
    if args.until_caught_up {
        return until_caught_up(global, &app, streams, sinks, audits, runtime);
    }
    let mut signal = runtime.spawn(until_signal());
    let mut broken = false;
    while runtime
        .block_on(async { tokio::time::timeout(WATCH, &mut signal).await })
        .is_err()
    {
        if streams.as_ref().is_some_and(Streams::ended)
            || sinks.as_ref().is_some_and(Sinks::ended)
            || audit.as_ref().is_some_and(Audit::ended)
        {
            broken = true;
            break;
        }
    }
    remark(global.quiet, "stopping: committing what is open");
    if let Some(streams) = &streams {
        streams.stop(args.leave);
    }
    let streamed = streams.map_or(Ok(()), Streams::join);
    if let Some(sinks) = &sinks {
        sinks.stop(args.leave);
    }
    let sunk = sinks.map_or(Ok(()), Sinks::join);
    let audited = finish(audit);
    streamed?;
    sunk?;
    audited?;
    if broken {
        bail!("a role ended by itself; see the log");
    }
    Ok(SAME)
}

/// Ends once all input that is there is in the ledger, all of the ledger in the tables and looked through, and all
/// breaks in their table.
fn until_caught_up(
    global: &Global,
    app: &App,
    streams: Option<Streams>,
    sinks: Option<Sinks>,
    audits: bool,
    runtime: &Handle,
) -> Result<u8> {
    let sinks_too = sinks.is_some();
    if let Some(streams) = streams {
        alone(app, "", app.config.stream.threads)?;
        streams.drain();
        streams.join()?;
    }
    if let Some(sinks) = sinks {
        alone(app, "-sink", 1)?;
        sinks.drain_to(ends(&app.config, finlake_schemas::topics::LEDGER)?);
        sinks.join()?;
    }
    let mut code = SAME;
    if audits {
        let audited = audit_once(app, runtime)?;
        for why in &audited.unchecked {
            remark(false, &format!("could not check: {why}"));
        }
        let text = format!(
            "audit: {} ledger entries checked, {} breaks open",
            audited.entries, audited.open
        );
        remark(global.quiet, &text);
        code = match audited {
            Audited { open: 1.., .. } => DIFFERS,
            Audited { unchecked, .. } if !unchecked.is_empty() => UNCHECKED,
            _ => SAME,
        };
    }
    if sinks_too {
        sink_breaks(app, runtime)?;
    }
    Ok(code)
}

/// The audit keeps its state and ends; it has nothing of others' to wait for.
fn finish(audit: Option<Audit>) -> Result<()> {
    let Some(audit) = audit else { return Ok(()) };
    audit.stop();
    audit.join()
}

/// Waits until this process has its group to itself, or those that are in it have shown that they live.
///
/// A static member that has ended keeps its partitions until its session is over: nobody would read them meanwhile, and
/// "caught up" would be said of the others only.
fn alone(app: &App, suffix: &str, own: usize) -> Result<()> {
    let config = &app.config;
    let group = format!("{}{suffix}", config.kafka.application_id);
    let client = crate::kafka::client(config);
    let client: BaseConsumer = client.create()?;
    let patience = config.stream.session_timeout + Duration::from_secs(5);
    let began = Instant::now();
    let mut quiet = 0;
    // Three times in a row: a member hears of its new partitions a little after the group is stable.
    while quiet < 3 && began.elapsed() < patience {
        let list = client.fetch_group_list(Some(&group), Duration::from_secs(10));
        let is_alone = list.is_ok_and(|list| {
            let found = list.groups().iter().find(|g| g.name() == group);
            found.is_some_and(|g| g.state() == "Stable" && g.members().len() == own)
        });
        quiet = if is_alone { quiet + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(200));
    }
    if quiet < 3 {
        tracing::info!(
            "group {group} has other members: their partitions are theirs to catch up with"
        );
    }
    Ok(())
}
