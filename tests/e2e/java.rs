//! Apache Kafka's own Java clients on the embedded broker: the console tools and an application with transactions.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use finlake_devkafka::DevKafka;
use futures::executor::block_on;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

use crate::harness::{Process, java, kafka_tools, root, secs};

/// A Java process with Kafka's jars on its class path.
fn command(libs: &std::path::Path, args: &[&str]) -> Command {
    let mut command = Command::new(java());
    command
        .args(["-Xmx256m", "-cp"])
        .arg(format!("{}/*", libs.display()))
        .args(args);
    command
}

fn prepared() -> Option<(DevKafka, PathBuf, tempfile::TempDir)> {
    let libs = kafka_tools()?;
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    Some((broker, libs, tempfile::tempdir().unwrap()))
}

fn create_topic(bootstrap: &str, name: &str) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
    let topic = NewTopic::new(name, 2, TopicReplication::Fixed(1));
    let made = block_on(admin.create_topics(&[topic], &AdminOptions::new())).unwrap();
    assert!(made.iter().all(Result::is_ok), "{made:?}");
}

#[test]
fn a_java_application_transfers_exactly_once_on_the_embedded_broker() {
    let Some((broker, libs, dir)) = prepared() else {
        return;
    };
    let source = root().join("tests/java/Transfer.java");
    let args = [source.to_str().unwrap(), &broker.bootstrap(), "2000"];
    let mut client = Process::spawn("transfer", dir.path(), &command(&libs, &args));
    assert_eq!(client.wait(secs(180)), 0, "{}", client.tail());
    assert!(client.stdout().contains("transferred 2000"));
}

#[test]
fn the_console_tools_work_on_the_embedded_broker() {
    let Some((broker, libs, dir)) = prepared() else {
        return;
    };
    let bootstrap = broker.bootstrap();
    create_topic(&bootstrap, "console");
    let lines: Vec<String> = (0..500).map(|i| format!("line {i}")).collect();
    let tool = "org.apache.kafka.tools.ConsoleProducer";
    let args = [tool, "--bootstrap-server", &bootstrap, "--topic", "console"];
    let mut producer = command(&libs, &args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = producer.stdin.take().unwrap();
    input.write_all(lines.join("\n").as_bytes()).unwrap();
    drop(input);
    assert!(producer.wait().unwrap().success());

    let tool = "org.apache.kafka.tools.consumer.ConsoleConsumer";
    let args = [
        tool,
        "--bootstrap-server",
        &bootstrap,
        "--topic",
        "console",
        "--from-beginning",
        "--max-messages",
        "500",
        "--timeout-ms",
        "60000",
    ];
    let mut consumer = Process::spawn("consumer", dir.path(), &command(&libs, &args));
    assert_eq!(consumer.wait(secs(120)), 0, "{}", consumer.tail());
    let mut seen: Vec<String> = consumer.stdout().lines().map(str::to_owned).collect();
    let mut expected = lines;
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected);
}
