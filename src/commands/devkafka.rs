//! `finlake devkafka`: the embedded broker and registry alone, for any Kafka client.

use anyhow::{Context, Result};
use finlake_devkafka::{Config, DevKafka, Storage};

use crate::cli::{DevkafkaArgs, Global};
use crate::config::{DEFAULT_DATA_DIR, DataDir};
use crate::output::remark;

/// Runs until a signal comes.
///
/// # Errors
/// An address that is not free, a folder that is in use or unreadable.
pub fn run(global: &Global, args: &DevkafkaArgs) -> Result<()> {
    let storage = if args.memory {
        Storage::Memory
    } else {
        let data = global
            .data
            .clone()
            .unwrap_or_else(|| DEFAULT_DATA_DIR.into());
        let folder = DataDir::new(std::path::absolute(&data)?).kafka();
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("data folder {}", folder.display()))?;
        Storage::Folder(folder)
    };
    let broker = DevKafka::start(Config {
        listen: args.listen,
        registry: Some(args.registry),
        storage,
        advertised_host: args.advertise.clone(),
        ..Config::default()
    })?;
    remark(
        global.quiet,
        &format!(
            "bootstrap.servers={}\nschema.registry.url={}\ncluster id {}; for development and tests only. Ctrl-C ends it",
            broker.bootstrap(),
            broker.registry_url().unwrap_or_default(),
            broker.cluster_id()
        ),
    );
    tokio::runtime::Runtime::new()?.block_on(crate::run::until_signal());
    broker.shutdown();
    Ok(())
}
