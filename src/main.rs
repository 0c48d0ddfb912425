//! The `finlake` program: arguments in, one function per command, exit codes in one match.

use std::process::ExitCode;

use anyhow::Result;
use finlake::cli::{Cli, Command, IngestCommand};
use finlake::config::{Config, LogFormat};
use finlake::{commands, demo, run};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    let cli = Cli::of(std::env::args_os()).unwrap_or_else(|e| e.exit());
    match dispatch(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}", chain(&e));
            ExitCode::from(2)
        }
    }
}

/// The reader of our output has gone (`| head`): not our fault and not worth a message.
fn is_broken_pipe(e: &anyhow::Error) -> bool {
    e.chain()
        .filter_map(|c| c.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The error and its causes, without what a message repeats of its cause.
fn chain(e: &anyhow::Error) -> String {
    let mut text = e.to_string();
    for cause in e.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

fn logging(config: Option<&Config>, default: &str) {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;
    let filter = config.map_or(default, |c| c.log.filter.as_str());
    let filter = EnvFilter::try_from_env("FINLAKE_LOG").unwrap_or_else(|_| EnvFilter::new(filter));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let terminal = std::io::stderr().is_terminal();
    let json = config.is_some_and(|c| c.log.format == LogFormat::Json);
    // A second initialisation (tests) keeps the first.
    let _ = if json {
        builder.json().try_init()
    } else {
        builder.with_ansi(terminal).try_init()
    };
}

/// 0 done; 1 done, and something differs; 2 could not be done.
fn dispatch(cli: &Cli) -> Result<u8> {
    let global = &cli.global;
    let load = || -> Result<Config> {
        let config = Config::load(&global.inputs())?;
        logging(Some(&config), "info");
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        Ok(config)
    };
    match &cli.command {
        Command::Demo(args) => {
            logging(None, "warn,rdkafka=error,librdkafka=error");
            let runtime = Runtime::new()?;
            demo::run(global, args, runtime.handle()).map(|()| 0)
        }
        Command::Run(args) => {
            let config = load()?;
            let runtime = Runtime::new()?;
            run::run(global, config, args, runtime.handle())
        }
        Command::Ingest(IngestCommand::File(args)) => {
            commands::ingest::file(global, &load()?, args).map(|()| 0)
        }
        Command::Ingest(IngestCommand::Klines(args)) => {
            commands::ingest::klines(global, &load()?, args).map(|()| 0)
        }
        Command::Query(args) => commands::query::run(global, &load()?, args),
        Command::Tables(args) => commands::tables::run(global, &load()?, args),
        Command::History(args) => commands::history::run(global, &load()?, args),
        Command::Replay(args) => {
            let (config, _broker) = commands::reached(load()?)?;
            commands::replay::run(global, config, args)
        }
        Command::Reset(args) => commands::reset::run(global, load()?, args),
        Command::Reconcile(args) => commands::reconcile::run(global, &load()?, args),
        Command::Breaks(command) => {
            let (config, _broker) = commands::reached(load()?)?;
            commands::breaks::run(global, &config, command)
        }
        Command::Dlq(command) => {
            let (config, _broker) = commands::reached(load()?)?;
            commands::dlq::run(global, &config, command)
        }
        Command::Topics(command) => commands::topics::run(global, &load()?, command),
        Command::Schemas(command) => commands::schemas::run(global, &load()?, command),
        Command::Topology(command) => commands::topology::run(&load()?, command),
        Command::Devkafka(args) => {
            logging(None, "info");
            commands::devkafka::run(global, args).map(|()| 0)
        }
        Command::Config(args) => commands::config::run(global, args),
        Command::Version => commands::version::run(global).map(|()| 0),
    }
}
