//! One function per command. Each takes the checked configuration and its arguments, prints results to stdout and
//! remarks to stderr, and gives the exit code: 0 done, 1 done and something differs. An error is exit code 2.

pub mod breaks;
pub mod config;
pub mod devkafka;
pub mod dlq;
pub mod history;
pub mod ingest;
mod letters;
pub mod query;
pub mod reconcile;
mod redrive;
pub mod replay;
pub mod reset;
pub mod schemas;
pub mod tables;
pub mod topics;
pub mod topology;
pub mod version;

use std::io::{self, StdoutLock};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use finlake_devkafka::{DevKafka, Storage};
use finlake_lakehouse::Lakehouse;

use crate::cli::Global;
use crate::config::{Catalog, Config};
use crate::output::{Kind, Printer, remark};
use crate::{kafka, parts};

/// Exit code: done.
pub const SAME: u8 = 0;
/// Exit code: done, and something differs.
pub const DIFFERS: u8 = 1;
/// Exit code: something could not be checked.
pub const UNCHECKED: u8 = 2;

/// A printer on stdout in the format asked for.
fn printer(global: &Global, columns: &[(&str, Kind)]) -> io::Result<Printer<StdoutLock<'static>>> {
    Printer::new(io::stdout().lock(), global.format(), columns)
}

/// The lakehouse, which must be there: a question must not make an empty one.
async fn existing_lake(config: &Config) -> Result<Lakehouse> {
    if let Catalog::Sqlite { path } = &config.lake.catalog
        && !path.exists()
    {
        let dir = config.data.path().display();
        bail!(
            "there is no lakehouse in {dir} ({} is missing); make one with `finlake demo --data {dir}` \
             or `finlake run --data {dir}`, or name another folder with --data",
            path.display()
        );
    }
    Ok(parts::open_lake(config).await?)
}

/// Kafka and the registry as configured. Where they do not answer and the data folder holds an embedded broker's topics:
/// that broker, the one that a demo runs there, or one of our own for as long as the second value lives.
///
/// # Errors
/// The folder is damaged.
pub fn reached(mut config: Config) -> Result<(Config, Option<DevKafka>)> {
    let folder = config.data.kafka();
    let servers: Vec<&str> = config.kafka.bootstrap_servers.split(',').collect();
    // A cluster elsewhere is never replaced by what an old demo left here.
    let is_here = servers.iter().all(|server| {
        let host = server
            .trim()
            .rsplit_once(':')
            .map_or(*server, |(host, _)| host);
        ["127.0.0.1", "localhost", "[::1]"].contains(&host.trim())
    });
    if !is_here || !folder.is_dir() {
        return Ok((config, None));
    }
    // A client would ask a port that nobody listens on again and again, for seconds.
    let answers = |a| TcpStream::connect_timeout(&a, Duration::from_secs(1)).is_ok();
    let listens = |server: &&str| {
        let found = server.trim().to_socket_addrs();
        found.is_ok_and(|mut all| all.any(answers))
    };
    if servers.iter().any(listens) && kafka::reachable(&config) {
        return Ok((config, None));
    }
    let shown = folder.display();
    // Remarks also with --quiet: it matters which topics were read or written.
    if let Some((bootstrap, url)) = DevKafka::running(&folder) {
        remark(
            false,
            &format!("asking the embedded broker at {bootstrap}, which runs on {shown}"),
        );
        config.kafka.bootstrap_servers = bootstrap;
        config.registry.url = url;
        return Ok((config, None));
    }
    let broker = DevKafka::start(finlake_devkafka::Config {
        storage: Storage::Folder(folder.clone()),
        ..finlake_devkafka::Config::default()
    });
    let broker = broker.with_context(|| {
        let servers = &config.kafka.bootstrap_servers;
        format!(
            "{servers} does not answer, and the embedded broker's folder {shown} cannot be opened"
        )
    })?;
    remark(
        false,
        &format!("reading the embedded broker's folder {shown}"),
    );
    config.kafka.bootstrap_servers = broker.bootstrap();
    config.registry.url = broker.registry_url().unwrap_or_default();
    Ok((config, Some(broker)))
}

#[cfg(test)]
mod tests;
