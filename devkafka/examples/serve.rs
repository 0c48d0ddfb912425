//! Runs a broker until it is killed: `serve [port] [folder]`. For trying other clients against it.

use finlake_devkafka::{Config, DevKafka, Storage};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let port: u16 = args.next().map(|p| p.parse()).transpose()?.unwrap_or(0);
    let storage = args
        .next()
        .map_or(Storage::Memory, |folder| Storage::Folder(folder.into()));
    let listen = ([127, 0, 0, 1], port).into();
    let broker = DevKafka::start(Config {
        listen,
        storage,
        auto_create_topics: true,
        ..Config::default()
    })?;
    println!(
        "bootstrap {} registry {}",
        broker.bootstrap(),
        broker.registry_url().unwrap_or_default()
    );
    loop {
        std::thread::park();
    }
}
