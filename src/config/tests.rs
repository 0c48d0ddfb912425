use std::collections::BTreeSet;

use super::keys::KEYS;
use super::kind::{Kind, Raw};
use super::*;

fn inputs() -> (tempfile::TempDir, Inputs) {
    let dir = tempfile::tempdir().unwrap();
    let inputs = Inputs {
        data: Some(dir.path().to_owned()),
        ..Inputs::default()
    };
    (dir, inputs)
}

fn with_file(text: &str) -> Result<Config, ConfigError> {
    let (dir, inputs) = inputs();
    std::fs::write(dir.path().join("finlake.toml"), text).unwrap();
    Config::load(&inputs)
}

fn message(result: Result<Config, ConfigError>) -> String {
    result
        .err()
        .map(|e| e.to_string())
        .expect("this must not be accepted")
}

fn names(config: &Config) -> Vec<&str> {
    config
        .stream
        .intervals
        .list()
        .iter()
        .map(finlake_market::Interval::name)
        .collect()
}

#[test]
fn without_anything_the_defaults_hold() {
    let (dir, inputs) = inputs();
    let config = Config::load(&inputs).unwrap();
    assert_eq!(config.stream.commit_interval, Duration::from_millis(100));
    assert_eq!(names(&config), ["1m", "1h", "1d"]);
    assert_eq!(config.stream.emit, Some(Duration::from_secs(1)));
    assert_eq!(
        config.lake.catalog,
        Catalog::Sqlite {
            path: dir.path().join("catalog.db")
        }
    );
    assert_eq!(
        config.lake.warehouse,
        format!("file://{}", dir.path().join("warehouse").display())
    );
    assert_eq!(config.state.dir, dir.path().join("state"));
    assert_eq!(config.serve.listen, Some("127.0.0.1:9464".parse().unwrap()));
    assert_eq!(config.gold.windows, [30, 90]);
}

#[test]
fn every_key_is_read_and_no_other() {
    let (_dir, mut inputs) = inputs();
    let (_, layers) = Config::load_with_layers(&inputs).unwrap();
    let in_table: BTreeSet<&str> = KEYS.iter().map(|k| k.path).collect();
    assert_eq!(layers.asked(), in_table);
    // The same on the path of the REST catalog.
    inputs.overrides = vec![
        ("lake.catalog".into(), "rest".into(), "--set".into()),
        (
            "lake.uri".into(),
            "http://127.0.0.1:1".into(),
            "--set".into(),
        ),
    ];
    let (_, layers) = Config::load_with_layers(&inputs).unwrap();
    assert_eq!(layers.asked(), in_table);
}

#[test]
fn the_example_is_a_valid_file_that_says_the_defaults() {
    let text = example();
    let (dir, mut inputs) = inputs();
    let (_, plain) = Config::load_with_layers(&inputs).unwrap();
    let file = dir.path().join("all.toml");
    std::fs::write(&file, &text).unwrap();
    inputs.config = Some(file);
    let (_, from_file) = Config::load_with_layers(&inputs).unwrap();
    for (a, b) in settings(&plain).iter().zip(settings(&from_file)) {
        assert_eq!((a.key, &a.value), (b.key, &b.value));
    }
    // Every key and every environment variable stands in it, also those commented out.
    for key in KEYS {
        assert!(text.contains(&key.env()), "{}", key.env());
        let name = match key.kind {
            Kind::Secret => format!("{}_file =", key.name()),
            _ => format!("{} =", key.name()),
        };
        assert!(text.contains(&name), "{name}");
    }
}

#[test]
fn the_documentation_is_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    let doc = std::fs::read_to_string(path).unwrap();
    let begin = "<!-- keys: begin (made from src/config/keys.rs) -->\n\n";
    let (head, rest) = doc.split_once(begin).expect("marker missing");
    let (old, tail) = rest
        .split_once("<!-- keys: end -->")
        .expect("marker missing");
    if old != markdown() {
        if std::env::var_os("UPDATE_DOCS").is_some() {
            let new = format!("{head}{begin}{}<!-- keys: end -->{tail}", markdown());
            std::fs::write(path, new).unwrap();
            return;
        }
        panic!("docs/configuration.md is old: run this test with UPDATE_DOCS=1");
    }
}

#[test]
fn each_key_can_be_set_by_its_environment_variable() {
    for key in KEYS.iter().filter(|k| !k.default.is_empty()) {
        let (_dir, mut inputs) = inputs();
        inputs.env.insert(key.env(), key.default.into());
        let (_, layers) = Config::load_with_layers(&inputs).unwrap();
        assert_eq!(
            layers.origin(key.path),
            Some(Origin::Env(key.env())),
            "{}",
            key.path
        );
        let want = key
            .kind
            .parse(&Raw::Text(key.default.into()))
            .unwrap()
            .to_toml();
        assert_eq!(layers.shown(key.path).unwrap().0, want);
    }
}

#[test]
fn command_line_over_environment_over_file() {
    let (dir, mut inputs) = inputs();
    std::fs::write(dir.path().join("finlake.toml"), "[stream]\nthreads = 2\n").unwrap();
    assert_eq!(Config::load(&inputs).unwrap().stream.threads, 2);
    inputs
        .env
        .insert("FINLAKE_STREAM_THREADS".into(), "3".into());
    assert_eq!(Config::load(&inputs).unwrap().stream.threads, 3);
    inputs
        .overrides
        .push(("stream.threads".into(), "4".into(), "--set".into()));
    assert_eq!(Config::load(&inputs).unwrap().stream.threads, 4);
}

#[test]
fn a_wrong_value_is_named_with_place_and_range() {
    let text = message(with_file(
        "[kafka]\npartitions = 4\n\n[stream]\nthreads = 65\n",
    ));
    for part in ["stream.threads", "finlake.toml:5", "65", "1 to 64"] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    let text = message(with_file("[lake]\ncommit_interval = 10\n"));
    assert!(text.contains("\"10s\""), "{text}");
}

#[test]
fn all_problems_are_told_at_once() {
    let text = message(with_file(
        "top = 1\n[stream]\nthread = 1\nthreads = 0\n[serve]\nlisten = \"everywhere\"\n",
    ));
    for part in [
        "top",
        "did you mean stream.threads",
        "1 to 64",
        "serve.listen",
    ] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
}

#[test]
fn an_unknown_environment_variable_of_a_section_is_an_error() {
    let (_dir, mut inputs) = inputs();
    inputs
        .env
        .insert("FINLAKE_STREAM_TREADS".into(), "1".into());
    let text = message(Config::load(&inputs));
    assert!(
        text.contains("did you mean FINLAKE_STREAM_THREADS"),
        "{text}"
    );
}

#[test]
fn variables_of_an_orchestrator_are_left_alone() {
    let (_dir, mut inputs) = inputs();
    for (k, v) in [
        ("FINLAKE_KAFKA_SERVICE_HOST", "10.0.0.1"),
        ("FINLAKE_KAFKA_PORT_9092_TCP", "tcp://10.0.0.1:9092"),
        ("FINLAKE_IMAGE", "finlake:1"),
    ] {
        inputs.env.insert(k.into(), v.into());
    }
    let config = Config::load(&inputs).unwrap();
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
}

#[test]
fn timeouts_must_fit_together() {
    let text = message(with_file("[stream]\ntransaction_timeout_ms = 20000\n"));
    assert!(
        text.contains("less than stream.session_timeout_ms (20000)"),
        "{text}"
    );
    let text = message(with_file(
        "[stream]\ncommit_interval_ms = 2501\nemit = \"5s\"\n",
    ));
    assert!(
        text.contains("a quarter of stream.transaction_timeout_ms"),
        "{text}"
    );
    let text = message(with_file("[stream]\nemit = \"50ms\"\n"));
    assert!(text.contains("stream.emit"), "{text}");
    assert!(
        with_file("[stream]\nemit = \"commit\"\n")
            .unwrap()
            .stream
            .emit
            .is_none()
    );
}

#[test]
fn buckets_times_partitions_is_bounded() {
    let text = message(with_file("[kafka]\npartitions = 8\n[lake]\nbuckets = 8\n"));
    assert!(text.contains("at most 32"), "{text}");
    assert!(with_file("[kafka]\npartitions = 4\n[lake]\nbuckets = 8\n").is_ok());
}

#[test]
fn daily_bars_are_always_computed() {
    let config = with_file("[stream]\nintervals = [\"5m\"]\n").unwrap();
    assert_eq!(names(&config), ["5m", "1d"]);
}

#[test]
fn secrets_come_from_environment_or_file_and_are_never_shown() {
    let (dir, mut inputs) = inputs();
    let file = dir.path().join("pw");
    std::fs::write(&file, "hunter2\n").unwrap();
    inputs
        .env
        .insert("FINLAKE_KAFKA_SASL_PASSWORD".into(), "swordfish".into());
    inputs
        .env
        .insert("FINLAKE_REGISTRY_USER".into(), "me".into());
    inputs.env.insert(
        "FINLAKE_REGISTRY_PASSWORD_FILE".into(),
        file.display().to_string(),
    );
    inputs.env.insert(
        "FINLAKE_KAFKA_PROPERTIES".into(),
        "sasl.oauthbearer.client.secret=xyzzy".into(),
    );
    let (config, layers) = Config::load_with_layers(&inputs).unwrap();
    assert_eq!(
        config.registry.password.as_ref().unwrap().reveal(),
        "hunter2"
    );
    let properties = config.kafka.client_properties();
    assert_eq!(properties.0["sasl.password"], "swordfish");
    let shown: String = settings(&layers)
        .iter()
        .map(|s| format!("{}\n", s.value))
        .collect();
    for text in [
        format!("{config:?}"),
        format!("{properties:?}"),
        format!("{layers:?}"),
        shown,
    ] {
        for secret in ["hunter2", "swordfish", "xyzzy"] {
            assert!(!text.contains(secret), "{secret} is shown in {text}");
        }
    }
}

#[test]
fn secrets_are_refused_in_files_and_on_the_command_line() {
    let text = message(with_file("[kafka]\nsasl_password = \"hunter2\"\n"));
    assert!(
        text.contains("FINLAKE_KAFKA_SASL_PASSWORD") && !text.contains("hunter2"),
        "{text}"
    );
    let text = message(with_file(
        "[kafka.properties]\n\"ssl.keystore.password\" = \"hunter2\"\n",
    ));
    assert!(
        text.contains("environment only") && !text.contains("hunter2"),
        "{text}"
    );
    let (_dir, mut inputs) = inputs();
    inputs.overrides.push((
        "kafka.sasl_password".into(),
        "hunter2".into(),
        "--set".into(),
    ));
    let text = message(Config::load(&inputs));
    assert!(
        text.contains("visible") && !text.contains("hunter2"),
        "{text}"
    );
}

#[test]
fn properties_that_exactly_once_depends_on_are_refused() {
    let text = message(with_file(
        "[kafka.properties]\n\"isolation.level\" = \"read_uncommitted\"\n",
    ));
    assert!(text.contains("exactly-once depends on it"), "{text}");
    let text = message(with_file("[kafka.properties]\ngroup.id = \"x\"\n"));
    assert!(text.contains("kafka.application_id"), "{text}");
}

#[test]
fn catalogs_and_warehouses() {
    let text = message(with_file("[lake]\ncatalog = \"rest\"\n"));
    assert!(text.contains("lake.uri"), "{text}");
    let rest = with_file("[lake]\ncatalog = \"rest\"\nuri = \"http://h:1\"\nwarehouse = \"wh\"\n");
    let lake = rest.unwrap().lake;
    assert_eq!(
        (lake.catalog, lake.warehouse),
        (
            Catalog::Rest {
                uri: "http://h:1".into()
            },
            "wh".into()
        )
    );
    let lake = with_file("[lake]\nwarehouse = \"s3://bucket/lake/\"\n")
        .unwrap()
        .lake;
    assert_eq!(lake.warehouse, "s3://bucket/lake");
    let text = message(with_file("[lake]\nwarehouse = \"gs://bucket\"\n"));
    assert!(text.contains("s3://"), "{text}");
}

#[test]
fn a_missing_file_that_was_named_says_how_to_get_one() {
    let (dir, mut inputs) = inputs();
    inputs.config = Some(dir.path().join("nowhere.toml"));
    let text = message(Config::load(&inputs));
    assert!(text.contains("finlake config --example"), "{text}");
}

#[test]
fn the_stores_have_a_folder_of_their_own() {
    let (dir, inputs) = inputs();
    let with = |state: &Path| {
        let state = state.display().to_string();
        let overrides = vec![("state.dir".to_owned(), state, "--set".to_owned())];
        Config::load(&Inputs {
            overrides,
            ..inputs.clone()
        })
    };
    let data = dir.path();
    for holds in [
        data,
        data.parent().unwrap(),
        &data.join("warehouse"),
        &data.join("kafka"),
    ] {
        let text = message(with(holds));
        assert!(
            text.contains("state.dir") && text.contains("of their own"),
            "{text}"
        );
    }
    for own in ["state", "state/a", "other"] {
        with(&data.join(own)).unwrap();
    }
}
