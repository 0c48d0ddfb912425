//! Bytes that no client would send: the broker does not panic, closes that connection, serves the
//! others.

mod conformance;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use conformance::clients::*;
use finlake_devkafka::wire::{self, APIS};
use finlake_devkafka::{Client, Config, Core, CoreConfig, DevKafka, storage::MemoryStorage};

static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            before(info);
        }));
    });
}

/// SplitMix64, so that a failing run can be repeated.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// A frame body that looks like a request of a random API in a random version.
fn frame(rng: &mut Rng, captured: &[Bytes]) -> Vec<u8> {
    match rng.below(10) {
        0 => {
            let n = rng.below(200);
            rng.bytes(n)
        }
        1..=3 => {
            let api = &APIS[rng.below(APIS.len())];
            let mut out = BytesMut::new();
            out.put_i16(api.key);
            out.put_i16(api.min + rng.below((api.max - api.min + 1) as usize) as i16);
            out.put_i32(rng.next() as i32);
            out.put_i16(-1);
            if rng.below(2) == 0 {
                out.put_u8(0);
            }
            for _ in 0..rng.below(30) {
                match rng.below(6) {
                    0 => out.put_i32(rng.next() as i32),
                    1 => out.put_i16(rng.below(4) as i16),
                    2 => out.put_u8(rng.below(4) as u8),
                    3 => out.put_i32(rng.below(3) as i32),
                    4 => out.put_slice(&[0xff; 5]),
                    _ => out.put_slice(b"\x00\x01t"),
                }
            }
            out.to_vec()
        }
        _ => {
            let mut out = captured[rng.below(captured.len())].to_vec();
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(out.len());
                match rng.below(5) {
                    0 => out.truncate(at),
                    1 => out.insert(at, rng.next() as u8),
                    2 if out.len() > at + 4 => {
                        out[at..at + 4].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff])
                    }
                    _ if at < out.len() => out[at] = rng.next() as u8,
                    _ => {}
                }
                if out.is_empty() {
                    break;
                }
            }
            out
        }
    }
}

/// What real clients send, captured through a proxy.
fn capture() -> Vec<Bytes> {
    let broker = DevKafka::start(Config::default()).unwrap();
    let target = broker.bootstrap();
    let proxy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // Metadata sends clients to the port they are told, so the broker behind is told the proxy's.
    let port = proxy.local_addr().unwrap().port();
    let frames = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut seen = frames.clone();
    broker.advertise_port(port);
    std::thread::spawn(move || {
        for client in proxy.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(&target).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let sink = std::mem::take(&mut seen);
            seen = sink.clone();
            std::thread::spawn(move || {
                let mut head = [0u8; 4];
                while from.read_exact(&mut head).is_ok() {
                    let mut body = vec![0; u32::from_be_bytes(head) as usize];
                    if from.read_exact(&mut body).is_err()
                        || to.write_all(&head).is_err()
                        || to.write_all(&body).is_err()
                    {
                        return;
                    }
                    sink.lock().unwrap().push(Bytes::from(body));
                }
            });
            let (mut from, mut to) = (server, client);
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let bootstrap = format!("127.0.0.1:{port}");
    runtime.block_on(async {
        conformance::transactions::atomic_offsets(&bootstrap).await;
        conformance::groups::range(&bootstrap).await;
        conformance::transactions::abort_isolation(&bootstrap).await;
    });
    let mut all = std::mem::take(&mut *frames.lock().unwrap());
    // The same few requests come again and again: some of each API are enough.
    let mut counts = std::collections::BTreeMap::new();
    all.retain(|f: &Bytes| {
        let count = counts.entry(f[..4].to_vec()).or_insert(0);
        *count += 1;
        *count <= 12
    });
    all
}

#[test]
fn any_bytes_are_survived() {
    count_panics();
    let captured = capture();
    assert!(captured.len() > 50, "captured {}", captured.len());
    let broker = DevKafka::start(Config::default()).unwrap();
    broker.create_topic("t", 2, &[]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let name = runtime.block_on(topic(&broker.bootstrap(), "others", 1));
    let producer = plain_producer(&broker.bootstrap());
    let mut rng = Rng(0x5eed);
    let before = PANICS.load(Ordering::Relaxed);

    // The core and the decoder directly: many, quickly.
    let mut core = Core::open(
        CoreConfig::default(),
        Box::new(MemoryStorage::journaled()),
        0,
    )
    .unwrap();
    let mut handled = 0;
    for i in 0..50_000u64 {
        let bytes = Bytes::from(frame(&mut rng, &captured));
        if let Ok(wire::Decoded::Request(header, request)) = wire::decode(bytes) {
            core.handle(i, &Client::default(), header.version, *request, i as i64);
            handled += 1;
            for (_, reply) in core.take_replies() {
                if let finlake_devkafka::Reply::Send(response) = reply {
                    let _ = wire::encode(1, header.version, &response);
                }
            }
        }
        if i % 64 == 0 {
            core.tick(i as i64);
            core.take_replies();
        }
    }
    assert!(
        handled > 5_000,
        "only {handled} frames got as far as the core"
    );

    // The whole server: others go on all the while.
    for i in 0..3_000 {
        let mut stream = TcpStream::connect(broker.bootstrap()).unwrap();
        let body = frame(&mut rng, &captured);
        let claimed = match rng.below(8) {
            0 => rng.next() as u32,
            _ => body.len() as u32,
        };
        let _ = stream.write_all(&claimed.to_be_bytes());
        let _ = stream.write_all(&body);
        if i % 10 == 0 {
            runtime.block_on(send(&producer, &name, 0, "k", &i.to_string()));
        }
    }
    assert_eq!(PANICS.load(Ordering::Relaxed), before, "something panicked");
    let found = read(
        &broker.bootstrap(),
        &name,
        0,
        "read_committed",
        300,
        Duration::from_secs(10),
    );
    assert_eq!(found.len(), 300);
}

#[test]
fn an_oversized_frame_closes_its_connection() {
    let broker = DevKafka::start(Config::default()).unwrap();
    for claimed in [101 << 20, u32::MAX, 0x8000_0000] {
        let mut stream = TcpStream::connect(broker.bootstrap()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        stream.write_all(&claimed.to_be_bytes()).unwrap();
        assert_eq!(
            stream.read(&mut [0; 8]).unwrap_or(0),
            0,
            "the broker closes"
        );
    }
}
