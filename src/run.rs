//! `finlake run`: roles of the application until a signal ends them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::runtime::Handle;

use crate::app::{App, Sinks, Streams, ends, start_audit};
use crate::audit::Audit;
use crate::cli::{Global, Role, RunArgs};
use crate::config::Config;
use crate::output::remark;

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

/// Runs the roles.
///
/// # Errors
/// What a user has to know; the process should be started again by its supervisor.
pub fn run(global: &Global, config: Config, args: &RunArgs, runtime: &Handle) -> Result<()> {
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
    let audit = args
        .roles
        .contains(&Role::Audit)
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
        return until_caught_up(&app, streams, sinks, audit);
    }
    let signal = runtime.spawn(until_signal());
    let mut broken = false;
    while !signal.is_finished() {
        std::thread::sleep(Duration::from_millis(50));
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
    Ok(())
}

/// Ends once all input that is there is in the ledger, and all of the ledger in the tables.
fn until_caught_up(
    app: &App,
    streams: Option<Streams>,
    sinks: Option<Sinks>,
    audit: Option<Audit>,
) -> Result<()> {
    if let Some(streams) = streams {
        streams.drain();
        streams.join()?;
    }
    if let Some(sinks) = sinks {
        sinks.drain_to(ends(&app.config, finlake_schemas::topics::LEDGER)?);
        sinks.join()?;
    }
    finish(audit)
}

/// The audit keeps its state and ends; it has nothing of others' to wait for.
fn finish(audit: Option<Audit>) -> Result<()> {
    let Some(audit) = audit else { return Ok(()) };
    audit.stop();
    audit.join()
}
