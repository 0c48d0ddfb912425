//! The registry client against a scripted registry: a few lines of HTTP over a local socket.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use finlake_schemas::registry::{RegistryConfig, RegistryError, Subject};
use finlake_schemas::{Codec, Dec8, DecodeError, Kind, Resolved, Tick, topics};
use serde_json::{Value, json};

#[derive(Debug, Clone)]
struct Request {
    method: String,
    path: String,
    authorization: Option<String>,
    schema: Option<String>,
}

type Answer = (u16, String);

struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// The thread ends with the process: it waits in `accept`.
    fn start(answer: impl Fn(&Request) -> Answer + Send + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let log = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                let mut words = line.split_whitespace().map(str::to_owned);
                let (Some(method), Some(path)) = (words.next(), words.next()) else {
                    continue;
                };
                let (mut length, mut authorization) = (0, None);
                loop {
                    line.clear();
                    reader.read_line(&mut line).unwrap();
                    let Some((name, value)) = line.trim().split_once(": ") else {
                        break;
                    };
                    match name.to_ascii_lowercase().as_str() {
                        "content-length" => length = value.parse().unwrap(),
                        "authorization" => authorization = Some(value.to_owned()),
                        _ => {}
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let schema = serde_json::from_slice::<Value>(&body)
                    .ok()
                    .and_then(|v| v["schema"].as_str().map(str::to_owned));
                let request = Request {
                    method,
                    path,
                    authorization,
                    schema,
                };
                let (status, body) = answer(&request);
                log.lock().unwrap().push(request);
                write!(
                    stream,
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                )
                .unwrap();
            }
        });
        Server { url, seen }
    }

    fn seen(&self, method: &str, path_start: &str) -> usize {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|r| r.method == method && r.path.starts_with(path_start))
            .count()
    }
}

fn error(status: u16, code: u32) -> Answer {
    (
        status,
        json!({"error_code": code, "message": "no"}).to_string(),
    )
}

/// A registry that works: subjects with versions, ids by content.
#[derive(Default)]
struct Model {
    ids: BTreeMap<String, u32>,
    subjects: BTreeMap<String, Vec<String>>,
}

impl Model {
    fn answer(&mut self, r: &Request) -> Answer {
        let path = r.path.split('?').next().unwrap();
        let parts: Vec<_> = path.trim_matches('/').split('/').collect();
        match (r.method.as_str(), parts.as_slice(), &r.schema) {
            ("GET", ["subjects", subject, "versions", "latest"], _) => {
                match self.subjects.get(*subject).and_then(|v| v.last()) {
                    Some(schema) => (200, json!({"id": self.ids[schema], "schema": schema, "version": 1, "subject": subject}).to_string()),
                    None => error(404, 40401),
                }
            }
            ("POST", ["subjects", subject], Some(schema)) => match self.subjects.get(*subject) {
                Some(versions) if versions.contains(schema) => {
                    (200, json!({"id": self.ids[schema]}).to_string())
                }
                Some(_) => error(404, 40403),
                None => error(404, 40401),
            },
            ("POST", ["subjects", subject, "versions"], Some(schema)) => {
                let next = self.ids.len() as u32 + 101;
                let id = *self.ids.entry(schema.clone()).or_insert(next);
                let versions = self.subjects.entry((*subject).to_owned()).or_default();
                versions.push(schema.clone());
                (200, json!({"id": id}).to_string())
            }
            ("POST", ["compatibility", ..], Some(_)) => {
                (200, json!({"is_compatible": true}).to_string())
            }
            ("GET", ["schemas", "ids", id], _) => {
                match self.ids.iter().find(|(_, known)| known.to_string() == *id) {
                    Some((schema, _)) => (200, json!({"schema": schema}).to_string()),
                    None => error(404, 40403),
                }
            }
            _ => error(404, 404),
        }
    }

    fn serve(self) -> Server {
        let model = Mutex::new(self);
        Server::start(move |r| model.lock().unwrap().answer(r))
    }

    fn with(subject: &str, schema: &str) -> Model {
        let mut model = Model::default();
        model.ids.insert(schema.to_owned(), 7);
        model
            .subjects
            .insert(subject.to_owned(), vec![schema.to_owned()]);
        model
    }
}

fn tick() -> Tick<'static> {
    Tick {
        source: "s",
        symbol: "S",
        trade_id: 1,
        price: Dec8(1),
        quantity: Dec8(1),
        trade_time: 1,
        event_time: None,
        buyer_maker: None,
        ingest_time: None,
        first_trade_id: None,
        last_trade_id: None,
    }
}

fn ticks() -> [Subject; 1] {
    [Subject::new(topics::TICKS, Kind::Tick)]
}

#[test]
fn fresh_registry_gets_every_version_and_a_second_start_registers_nothing() {
    let server = Model::default().serve();
    let codec = Codec::connect(RegistryConfig::new(&server.url), &Subject::all()).unwrap();
    // Two tick versions; one bar schema under two subjects; metrics; ledger.
    assert_eq!(
        server.seen("POST", "/subjects/market.ticks-value/versions"),
        2
    );
    assert_eq!(
        server.seen("POST", "/subjects/market.ohlcv.live-value/versions"),
        1
    );
    let ids: Vec<_> = [
        (Kind::Tick, 1),
        (Kind::Tick, 2),
        (Kind::Bar, 1),
        (Kind::Metrics, 1),
        (Kind::Ledger, 1),
        (Kind::VendorBar, 1),
        (Kind::Action, 1),
        (Kind::Assertion, 1),
        (Kind::Break, 1),
        (Kind::Kline, 1),
    ]
    .map(|(kind, version)| codec.own_id(kind, version).unwrap())
    .to_vec();
    assert_eq!(ids, [101, 102, 103, 104, 105, 106, 107, 108, 109, 110]);
    // The records of one topic evolve one by one.
    for name in ["VendorBar", "CorporateAction", "Assertion"] {
        let path = format!("/subjects/market.bars-finlake.{name}/versions");
        assert_eq!(server.seen("POST", &path), 1, "{path}");
    }
    assert_eq!(server.seen("POST", "/subjects/market.bars-value/"), 0);
    assert_eq!(
        server.seen("POST", "/subjects/quality.breaks-value/versions"),
        1
    );
    let mut bytes = Vec::new();
    codec.encode_tick(&tick(), 2, &mut bytes).unwrap();
    assert_eq!(bytes[..5], [0, 0, 0, 0, 102]);
    assert_eq!(codec.decode_tick(&bytes), Ok(tick()));

    let before = server.seen("POST", "/subjects/market.ticks-value/versions");
    Codec::connect(RegistryConfig::new(&server.url), &Subject::all()).unwrap();
    let after = server.seen("POST", "/subjects/market.ticks-value/versions");
    assert_eq!(before, after);
}

#[test]
fn new_versions_are_put_to_the_registry_before_they_are_registered() {
    let server = Model::with("market.ticks-value", Kind::Tick.versions()[0]).serve();
    Codec::connect(RegistryConfig::new(&server.url), &ticks()).unwrap();
    // v1 is there, v2 is asked for and then registered.
    assert_eq!(server.seen("POST", "/compatibility/"), 1);
    assert_eq!(
        server.seen("POST", "/subjects/market.ticks-value/versions"),
        1
    );
}

#[test]
fn refusal_by_the_registry_stops_the_start_before_anything_is_registered() {
    let model = Mutex::new(Model::with("market.ticks-value", Kind::Tick.versions()[0]));
    let server = Server::start(move |r| {
        if r.path.starts_with("/compatibility") {
            let no = json!({"is_compatible": false, "messages": ["event_time: no default"]});
            return (200, no.to_string());
        }
        model.lock().unwrap().answer(r)
    });
    let result = Codec::connect(RegistryConfig::new(&server.url), &Subject::all());
    match result.err() {
        Some(RegistryError::Incompatible {
            subject,
            version,
            why,
        }) => {
            assert_eq!((subject.as_str(), version), ("market.ticks-value", 2));
            assert!(why.contains("event_time"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        server.seen("POST", "/subjects/market.ohlcv-value/versions"),
        0
    );
}

#[test]
fn both_directions_are_checked_whatever_the_subjects_level() {
    // Readable by our schema, but it cannot read ours: this registry would let it pass.
    let strict = Kind::Tick.versions()[0].replacen(
        r#""fields": ["#,
        r#""fields": [{"name": "venue", "type": "string"}, "#,
        1,
    );
    let server = Model::with("market.ticks-value", &strict).serve();
    let result = Codec::connect(RegistryConfig::new(&server.url), &ticks());
    assert!(matches!(
        result.err(),
        Some(RegistryError::Incompatible { .. })
    ));
    assert_eq!(
        server.seen("POST", "/subjects/market.ticks-value/versions"),
        0
    );
}

#[test]
fn registration_can_be_switched_off() {
    let server = Model::default().serve();
    let config = RegistryConfig {
        register: false,
        ..RegistryConfig::new(&server.url)
    };
    assert!(matches!(
        Codec::connect(config, &ticks()).err(),
        Some(RegistryError::Missing { version: 1, .. })
    ));
}

/// A registry whose answers by id are scripted; the rest works.
fn scripted(by_id: impl Fn(u32) -> Answer + Send + 'static) -> Server {
    let model = Mutex::new(Model::default());
    Server::start(move |r| match r.path.strip_prefix("/schemas/ids/") {
        Some(id) => by_id(id.split('?').next().unwrap().parse().unwrap()),
        None => model.lock().unwrap().answer(r),
    })
}

#[test]
fn unknown_and_unreachable_are_told_apart() {
    let server = scripted(|id| match id {
        1 => error(404, 40403),
        2 => error(500, 50001),
        3 => error(503, 50003),
        4 => (404, "<html>not here</html>".to_owned()),
        5 => error(401, 40101),
        6 => error(429, 42901),
        7 => (200, "nonsense".to_owned()),
        _ => (200, json!({"schema": "\"string\""}).to_string()),
    });
    let codec = Codec::connect(RegistryConfig::new(&server.url), &ticks()).unwrap();
    assert!(!codec.knows(1));
    assert_eq!(codec.resolve(1), Ok(Resolved::Unknown));
    assert!(codec.knows(1));
    for id in 2..=7 {
        assert!(codec.resolve(id).is_err(), "{id}");
        assert!(!codec.knows(id), "{id}: must be asked again");
    }
    // Known to the registry, of no use here: the record is poison, with the reason.
    assert_eq!(codec.resolve(8), Ok(Resolved::Known));
    match codec.decode_tick(&[0, 0, 0, 0, 8, 1]) {
        Err(e @ DecodeError::WrongSchema { id: 8, .. }) => assert_eq!(e.class(), "unknown_schema"),
        other => panic!("{other:?}"),
    }
    // Asked once each: the answers that settle it are kept.
    let asked = server.seen("GET", "/schemas/ids/");
    let _ = (codec.resolve(1), codec.resolve(8));
    assert_eq!(server.seen("GET", "/schemas/ids/"), asked);
}

#[test]
fn a_foreign_writers_schema_is_fetched_and_used() {
    let foreign = Kind::Tick.versions()[0].replacen(
        r#""fields": ["#,
        r#""fields": [{"name": "extra", "type": "int", "default": 0}, "#,
        1,
    );
    let server = scripted(move |_| (200, json!({"schema": foreign}).to_string()));
    let codec = Codec::connect(RegistryConfig::new(&server.url), &ticks()).unwrap();
    let mut ours = Vec::new();
    codec.encode_tick(&tick(), 1, &mut ours).unwrap();
    let mut theirs = vec![0, 0, 0, 3, 0xe8, 4];
    theirs.extend_from_slice(&ours[5..]);
    assert_eq!(
        codec.decode_tick(&theirs),
        Err(DecodeError::UnknownSchema { id: 1000 })
    );
    assert_eq!(codec.resolve(1000), Ok(Resolved::Known));
    assert_eq!(codec.decode_tick(&theirs), Ok(tick()));
}

#[test]
fn nobody_there_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let result = Codec::connect(RegistryConfig::new(&url), &ticks());
    assert!(matches!(result.err(), Some(RegistryError::Unreachable(_))));
    // TLS needs a provider to be there at all: this must fail to connect, not panic.
    let url = url.replace("http:", "https:");
    let result = Codec::connect(RegistryConfig::new(&url), &ticks());
    assert!(matches!(result.err(), Some(RegistryError::Unreachable(_))));
}

#[test]
fn the_next_url_is_tried() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let server = Model::default().serve();
    let config = RegistryConfig::new(&format!("{dead}, {}/", server.url));
    assert!(Codec::connect(config, &ticks()).is_ok());
}

#[test]
fn credentials_go_into_requests_and_nowhere_else() {
    let server = Model::default().serve();
    let url = server.url.replace("http://", "http://ann:p%40ss@");
    let config = RegistryConfig::new(&url);
    let shown = format!("{config:?}");
    assert!(!shown.contains("ss") || !shown.contains("ann"), "{shown}");
    Codec::connect(config, &ticks()).unwrap();
    let seen = server.seen.lock().unwrap().clone();
    assert!(!seen.is_empty());
    for request in &seen {
        // ann:p@ss
        assert_eq!(request.authorization.as_deref(), Some("Basic YW5uOnBAc3M="));
    }
    let bad = RegistryConfig::new("http://ann:secret@localhost:1");
    let message = Codec::connect(bad, &ticks()).err().unwrap().to_string();
    assert!(!message.contains("secret"), "{message}");
    let bad = RegistryConfig::new("ann:secret@nowhere");
    let message = Codec::connect(bad, &ticks()).err().unwrap().to_string();
    assert!(!message.contains("secret"), "{message}");
}

/// Looking at a registry checks and registers nothing, and takes what is there as it is.
#[test]
fn a_reader_changes_nothing_and_sees_what_is_there() {
    let stranger = Kind::Bar.newest().replace("\"scale\": 8", "\"scale\": 10");
    let mut model = Model::with("market.ohlcv-value", &stranger);
    model.ids.insert(Kind::Tick.versions()[1].to_owned(), 9);
    model.subjects.insert(
        "market.ticks-value".to_owned(),
        vec![Kind::Tick.versions()[1].to_owned()],
    );
    let server = model.serve();
    let config = || RegistryConfig::new(&server.url);
    assert!(Codec::connect(config(), &Subject::all()).is_err());
    let (codec, newest) = Codec::connect_reading(config(), &Subject::all()).unwrap();
    assert_eq!(newest["market.ohlcv-value"], stranger);
    assert_eq!(newest["market.ticks-value"], Kind::Tick.newest());
    assert_eq!(newest.len(), 2);
    assert_eq!(codec.own_id(Kind::Tick, 2), Some(9));
    assert_eq!(codec.own_id(Kind::Tick, 1), None);
    assert_eq!(
        server.seen("POST", "/subjects/market.ticks-value/versions"),
        0
    );
    let gone = RegistryConfig::new("http://127.0.0.1:9");
    assert!(matches!(
        Codec::connect_reading(gone, &Subject::all()),
        Err(RegistryError::Unreachable(_))
    ));
}
