//! The REST catalog against a small server of our own that loses, refuses and forgets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use finlake_lakehouse::{Catalog, Lakehouse, Table, TableSink};
use iceberg::spec::{TableMetadata, TableMetadataBuilder};
use iceberg::{TableCreation, TableUpdate};
use iceberg_catalog_rest::{CommitTableRequest, CreateTableRequest};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::common::*;

/// What the server does with the n-th commit.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mood {
    Answer,
    /// Applies it and says 503.
    ApplyAndForget,
    /// Does nothing and says 500.
    Refuse,
}

#[derive(Default)]
struct Server {
    /// By namespace and name.
    tables: BTreeMap<(String, String), (u32, TableMetadata)>,
    namespaces: BTreeSet<String>,
    commits: usize,
    conflicts: usize,
    /// The next commit is answered only after another one was applied on top of it, with the table
    /// as it then stands: a server reads it again after its swap, as Iceberg's own
    /// `CatalogHandlers.commit` does.
    overtake: bool,
}

impl Server {
    fn loaded(&self, at: &(String, String)) -> (u16, Value) {
        match self.tables.get(at) {
            None => (404, json!({})),
            Some((version, m)) => (
                200,
                json!({
                    "metadata-location": format!("{}/metadata/{version:05}.json", m.location()),
                    "metadata": m,
                    "config": {},
                }),
            ),
        }
    }

    fn handle(&mut self, method: &str, path: &str, body: &[u8], mood: Mood) -> (u16, Value) {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let at = |ns: &str, name: &str| (ns.to_owned(), name.to_owned());
        match (method, parts.as_slice()) {
            ("GET", ["v1", "config"]) => {
                (200, json!({"overrides": {"prefix": "p"}, "defaults": {}}))
            }
            ("POST", ["v1", "p", "namespaces"]) => {
                let body: Value = serde_json::from_slice(body).unwrap();
                let name = body["namespace"][0].as_str().unwrap();
                self.namespaces.insert(name.to_owned());
                (200, json!({"namespace": [name]}))
            }
            // A page of one each.
            ("GET", ["v1", "p", "namespaces"]) => {
                let n: usize = query
                    .strip_prefix("pageToken=")
                    .map_or(0, |n| n.parse().unwrap());
                let page: Vec<_> = self
                    .namespaces
                    .iter()
                    .skip(n)
                    .take(1)
                    .map(|n| [n])
                    .collect();
                let more = (n + 1 < self.namespaces.len()).then(|| (n + 1).to_string());
                (200, json!({"namespaces": page, "next-page-token": more}))
            }
            ("DELETE", ["v1", "p", "namespaces", ns]) => {
                assert!(
                    !self.tables.keys().any(|(n, _)| n == ns),
                    "{ns} is not empty"
                );
                (
                    if self.namespaces.remove(*ns) {
                        200
                    } else {
                        404
                    },
                    json!({}),
                )
            }
            ("GET", ["v1", "p", "namespaces", ns, "tables"]) => {
                let names = self.tables.keys().filter(|(n, _)| n == ns);
                let names: Vec<_> = names
                    .map(|(n, t)| json!({"namespace": [n], "name": t}))
                    .collect();
                (200, json!({"identifiers": names}))
            }
            ("POST", ["v1", "p", "namespaces", ns, "tables"]) => {
                let r: CreateTableRequest = serde_json::from_slice(body).unwrap();
                let at = at(ns, &r.name);
                let creation = TableCreation::builder()
                    .name(r.name)
                    .location(r.location.unwrap())
                    .schema(r.schema)
                    .partition_spec_opt(r.partition_spec)
                    .sort_order_opt(r.write_order)
                    .properties(r.properties)
                    .build();
                let built = TableMetadataBuilder::from_table_creation(creation)
                    .unwrap()
                    .build()
                    .unwrap();
                self.tables.insert(at.clone(), (0, built.metadata));
                self.loaded(&at)
            }
            ("GET", ["v1", "p", "namespaces", ns, "tables", name]) => self.loaded(&at(ns, name)),
            ("DELETE", ["v1", "p", "namespaces", ns, "tables", name]) => {
                let gone = self.tables.remove(&at(ns, name));
                (if gone.is_some() { 200 } else { 404 }, json!({}))
            }
            ("POST", ["v1", "p", "namespaces", ns, "tables", name]) => {
                if mood == Mood::Refuse {
                    return (500, json!({"error": "out of order"}));
                }
                let r: CommitTableRequest = serde_json::from_slice(body).unwrap();
                let at = at(ns, name);
                let (version, m) = self.tables[&at].clone();
                if r.requirements.iter().any(|q| q.check(Some(&m)).is_err()) {
                    self.conflicts += 1;
                    return (409, json!({}));
                }
                let old = format!("{}/metadata/{version:05}.json", m.location());
                let mut builder = m.into_builder(Some(old));
                for update in r.updates {
                    builder = TableUpdate::apply(update, builder).unwrap();
                }
                let next = builder.build().unwrap().metadata;
                self.tables.insert(at.clone(), (version + 1, next));
                if mood == Mood::ApplyAndForget {
                    return (503, json!({}));
                }
                self.loaded(&at)
            }
            _ => (404, json!({"unknown": path})),
        }
    }
}

async fn serve(mut stream: TcpStream, server: Arc<Mutex<Server>>, moods: &'static [Mood]) {
    let mut seen = Vec::new();
    let mut chunk = [0u8; 65_536];
    loop {
        let n = stream.read(&mut chunk).await.unwrap_or(0);
        if n == 0 {
            return;
        }
        seen.extend_from_slice(&chunk[..n]);
        let Some(end) = seen.windows(4).position(|w| w == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&seen[..end]).to_string();
        let length = head
            .lines()
            .filter_map(|l| l.split_once(':'))
            .find(|(k, _)| k.eq_ignore_ascii_case("content-length"))
            .map_or(0, |(_, v)| v.trim().parse::<usize>().unwrap());
        if seen.len() < end + 4 + length {
            continue;
        }
        let mut words = head.split_whitespace();
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let (mut status, mut body, held) = {
            let mut s = server.lock().unwrap();
            let is_commit = method == "POST" && path.contains("/tables/");
            let mood = if is_commit {
                s.commits += 1;
                moods[s.commits % moods.len()]
            } else {
                Mood::Answer
            };
            let (status, body) = s.handle(method, path, &seen[end + 4..end + 4 + length], mood);
            let held = is_commit && status == 200 && std::mem::take(&mut s.overtake);
            (status, body, held)
        };
        if held {
            let parts: Vec<&str> = path.split('/').collect(); // /v1/p/namespaces/NS/tables/T
            let at = (parts[4].to_owned(), parts[6].to_owned());
            let mine = server.lock().unwrap().tables[&at].0;
            loop {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                let s = server.lock().unwrap();
                if s.tables[&at].0 > mine {
                    (status, body) = s.loaded(&at);
                    break;
                }
            }
        }
        let body = body.to_string();
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        seen.drain(..end + 4 + length);
    }
}

/// A lakehouse whose catalog is such a server: its folder, itself, and the server.
async fn served(moods: &'static [Mood]) -> (TempDir, Lakehouse, Arc<Mutex<Server>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let server = Arc::new(Mutex::new(Server::default()));
    let shared = server.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, shared.clone(), moods));
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let mut config = eager(dir.path(), 2);
    config.catalog = Catalog::Rest {
        uri,
        warehouse: None,
        props: HashMap::new(),
    };
    let lake = open(config).await;
    (dir, lake, server)
}

/// Writers of Bronze, one of each Kafka partition.
async fn two(lake: &Lakehouse) -> (TableSink, TableSink) {
    let a = sink(lake, Table::Ticks, &[0]).await;
    (a, sink(lake, Table::Ticks, &[1]).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_survive_a_forgetful_server() {
    let moods = &[
        Mood::Answer,
        Mood::ApplyAndForget,
        Mood::Answer,
        Mood::Refuse,
        Mood::Answer,
    ];
    let (_dir, lake, _) = served(moods).await;
    let ops: Vec<Vec<(u8, u8)>> = (0..20u8).map(|i| vec![(i, i), (i / 2, i / 3)]).collect();
    let all = ledger(&ops);
    let mut s = sink(&lake, Table::Ohlcv, &[0]).await;
    for c in 1..=20 {
        s.commit(silver(&lake, 0, c, c, &all)).await.unwrap();
    }
    let found = rows(&lake, Table::Ohlcv).await;
    assert_eq!(as_versions(&found), expected(&all));
    let at = lake.position(Table::Ohlcv, 0).await.unwrap().unwrap();
    assert_eq!(at.commit, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicts_are_reattached() {
    let (_dir, lake, server) = served(&[Mood::Answer]).await;
    let (mut a, mut b) = two(&lake).await;
    for c in 1..=10 {
        a.commit(bronze(0, c, c)).await.unwrap();
        b.commit(bronze(1, c, c)).await.unwrap();
    }
    assert!(a.reattached() + b.reattached() > 10);
    assert!(server.lock().unwrap().conflicts > 10);
    assert_eq!(rows(&lake, Table::Ticks).await.len(), 200);
}

/// An answer may show a commit that another instance made on top of this one: what that one added and
/// removed must not be lost with the next commit.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_shows_a_later_commit_loses_no_row() {
    let (_dir, lake, server) = served(&[Mood::Answer]).await;
    let (mut a, mut b) = two(&lake).await;
    a.commit(bronze(0, 1, 1)).await.unwrap();
    b.commit(bronze(1, 1, 1)).await.unwrap();
    server.lock().unwrap().overtake = true;
    let first = tokio::spawn(async move {
        a.commit(bronze(0, 2, 2)).await.unwrap(); // applied; its answer waits for the other's
        a
    });
    while server.lock().unwrap().overtake {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    b.commit(bronze(1, 2, 2)).await.unwrap();
    let mut a = first.await.unwrap();
    a.commit(bronze(0, 3, 3)).await.unwrap();
    assert_eq!(rows(&lake, Table::Ticks).await.len(), 50);
    for (p, commit) in [(0, 3), (1, 2)] {
        let at = lake.position(Table::Ticks, p).await.unwrap().unwrap();
        assert_eq!(at.commit, commit);
    }
}

/// A shadow on a REST catalog: beside the live tables, listed, dropped with its namespaces.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_comes_and_goes_beside_the_live_tables() {
    let (dir, lake, server) = served(&[Mood::Answer]).await;
    let mut live = sink(&lake, Table::Ticks, &[0]).await;
    live.commit(bronze(0, 1, 2)).await.unwrap();
    let before = server.lock().unwrap().namespaces.clone();
    let shadow = lake
        .create_shadow("check", BTreeMap::new(), false)
        .await
        .unwrap();
    shadow
        .ensure_only(&[Table::Ohlcv, Table::Ticks], &ids())
        .await
        .unwrap();
    let mut again = sink(&shadow, Table::Ticks, &[0]).await;
    again.commit(bronze(0, 1, 2)).await.unwrap();
    let listed = lake.shadows().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].tables, [(Table::Ticks, 20), (Table::Ohlcv, 0)]);
    assert!(lake.drop_shadow("check").await.unwrap());
    assert!(lake.shadows().await.unwrap().is_empty());
    assert_eq!(server.lock().unwrap().namespaces, before);
    assert!(!dir.path().join("warehouse/shadow/check").exists());
    assert_eq!(rows(&lake, Table::Ticks).await.len(), 20);
}
