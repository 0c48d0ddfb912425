//! `/metrics` (Prometheus text), `/healthz` (the process answers) and `/readyz` (it does its work).
//!
//! Without authentication, so it listens on this machine only unless it is told otherwise. It
//! reads what others count; it decides nothing and holds nobody up.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::process;

/// Whether the process does its work; if not, why.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(
        "cannot listen on {at} for metrics: {source}; choose another address with serve.listen, or \"off\""
    )]
    Listen {
        at: SocketAddr,
        source: std::io::Error,
    },
    #[error("metrics: {0}; this is a bug")]
    Metrics(#[from] prometheus::Error),
}

/// The running endpoint; it ends with this value.
pub struct Server {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Server {
    /// Where it listens; the port is the real one where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

struct Shared {
    registry: Registry,
    ready: Ready,
}

/// Starts the endpoint on a runtime and returns once it listens. Adds the process's own metrics
/// to the registry.
///
/// # Errors
/// The address is in use or not ours.
pub fn start(
    runtime: &Handle,
    at: SocketAddr,
    registry: Registry,
    ready: Ready,
) -> Result<Server, ServeError> {
    process::register(&registry)?;
    let failed = |source| ServeError::Listen { at, source };
    let listener = TcpListener::bind(at).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(failed)?
    };
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness))
        .with_state(Arc::new(Shared { registry, ready }));
    let (stop, stopped) = oneshot::channel::<()>();
    runtime.spawn(async move {
        let until = async {
            // An error says that the sender is gone, which is what we wait for.
            let _ = stopped.await;
        };
        if let Err(e) = axum::serve(listener, app)
            .with_graceful_shutdown(until)
            .await
        {
            tracing::warn!("the metrics endpoint has ended: {e}");
        }
    });
    Ok(Server {
        address,
        _stop: stop,
    })
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&shared.registry.gather(), &mut text) {
        Ok(()) => (
            [(header::CONTENT_TYPE, encoder.format_type().to_owned())],
            text,
        )
            .into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
    }
}

async fn readiness(State(shared): State<Arc<Shared>>) -> Response {
    match (shared.ready)() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn ask(at: SocketAddr, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(at).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn metrics_health_and_readiness() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let is_ready = Arc::new(AtomicBool::new(false));
        let asked = is_ready.clone();
        let ready: Ready = Arc::new(move || match asked.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("still restoring".into()),
        });
        let registry = Registry::new();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = start(runtime.handle(), any, registry.clone(), ready.clone()).unwrap();
        let at = server.address();

        assert!(ask(at, "/healthz").starts_with("HTTP/1.1 200"));
        let not_yet = ask(at, "/readyz");
        assert!(not_yet.starts_with("HTTP/1.1 503") && not_yet.contains("still restoring"));
        is_ready.store(true, Ordering::Relaxed);
        assert!(ask(at, "/readyz").starts_with("HTTP/1.1 200"));
        let metrics = ask(at, "/metrics");
        assert!(
            metrics.contains("text/plain") && metrics.contains("finlake_build_info"),
            "{metrics}"
        );
        #[cfg(target_os = "linux")]
        assert!(
            metrics.contains("process_resident_memory_bytes"),
            "{metrics}"
        );
        assert!(ask(at, "/").starts_with("HTTP/1.1 404"));

        // A second endpoint on the same registry does not register the process twice.
        assert!(start(runtime.handle(), any, registry, ready.clone()).is_ok());
        let taken = start(runtime.handle(), at, Registry::new(), ready)
            .err()
            .unwrap();
        assert!(taken.to_string().contains("serve.listen"), "{taken}");
    }
}
