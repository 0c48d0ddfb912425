//! One client connection: frames in, frames out, one request at a time and in order, as brokers do.
//!
//! What a client sends ahead waits in the socket, so a connection holds at most one frame, its
//! answer, and the read buffer. A frame that is too long or does not decode closes the connection;
//! the others go on. Panics of the code below end this connection only.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::error::ResponseError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::{Shared, Submitted};
use crate::core::{Client, Reply, api_versions};
use crate::faults::Fault;
use crate::wire::{self, Decoded, Header, Request, Response};

/// Longest frame accepted (`socket.request.max.bytes`).
const MAX_FRAME: usize = 100 << 20;
/// Most connections at a time.
const MAX_CONNECTIONS: usize = 4096;
/// A read buffer larger than this is given back once its frame is done.
const KEEP_BUFFER: usize = 1 << 20;

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
enum Close {
    #[error("the client closed it")]
    ByClient,
    #[error("frame of {0} bytes; at most {MAX_FRAME} are accepted")]
    FrameLength(i32),
    #[error(transparent)]
    Wire(#[from] wire::WireError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("an injected fault")]
    Fault,
    #[error("an injected fault: nothing more is answered")]
    Withheld,
    #[error("the broker is stopping")]
    Stopping,
    #[error("the request made the broker panic")]
    Panic,
}

/// Accepts connections for ever.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) if !shared.faults.refusing() => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    serve(stream, peer, &shared).await;
                    drop(place);
                });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    }
}

async fn serve(mut stream: TcpStream, peer: SocketAddr, shared: &Shared) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY not set");
    }
    let mut cut = shared.faults.cut_signal();
    cut.mark_unchanged();
    let ended = tokio::select! {
        ended = async {
            match requests(&mut stream, peer, shared).await {
                Err(Close::Withheld) => silence(&mut stream).await,
                ended => ended,
            }
        } => ended,
        _ = cut.changed() => Err(Close::Fault),
    };
    match ended {
        Ok(()) | Err(Close::ByClient | Close::Stopping | Close::Fault | Close::Io(_)) => {}
        Err(reason) => tracing::warn!(%peer, %reason, "connection closed"),
    }
}

async fn requests(stream: &mut TcpStream, peer: SocketAddr, shared: &Shared) -> Result<(), Close> {
    let mut buffer = BytesMut::new();
    let mut client = Client {
        id: String::new(),
        host: format!("/{}", peer.ip()),
    };
    loop {
        let frame = read_frame(stream, &mut buffer).await?;
        let (header, request) = match wire::decode(frame)? {
            Decoded::Request(header, request) => (header, *request),
            Decoded::UnknownApiVersions(header) => {
                let code = ResponseError::UnsupportedVersion.code();
                let response = Response::ApiVersions(api_versions(code));
                stream
                    .write_all(&wire::encode(header.correlation_id, 0, &response)?)
                    .await?;
                continue;
            }
        };
        if client.id != header.client_id {
            client.id.clone_from(&header.client_id);
        }
        if let Some(response) = answer(&client, &header, request, shared).await? {
            stream
                .write_all(&wire::encode(
                    header.correlation_id,
                    header.version,
                    &response,
                )?)
                .await?;
        }
    }
}

/// Takes whatever still comes and answers nothing, until the client has had enough.
async fn silence(stream: &mut TcpStream) -> Result<(), Close> {
    let mut ignored = [0; 1024];
    while stream.read(&mut ignored).await? > 0 {}
    Err(Close::ByClient)
}

/// Carries a request out, with whatever fault hits it.
async fn answer(
    client: &Client,
    header: &Header,
    request: Request,
    shared: &Shared,
) -> Result<Option<Response>, Close> {
    let fault = shared.faults.take(&request);
    match &fault {
        Some(Fault::CloseBefore) => return Err(Close::Fault),
        Some(Fault::Delay(time)) => tokio::time::sleep(*time).await,
        Some(Fault::Error(code)) => {
            return wire::refusal(&request, *code).map(Some).ok_or(Close::Fault);
        }
        Some(Fault::DropReply | Fault::Withhold) | None => {}
    }
    let submit = std::panic::AssertUnwindSafe(|| shared.submit(client, header.version, request));
    let submitted = std::panic::catch_unwind(submit).map_err(|_| Close::Panic)?;
    let reply = match submitted {
        Submitted::Ready(reply) => reply,
        Submitted::Waiting(reply) => reply.await.map_err(|_| Close::Stopping)?,
    };
    match fault {
        Some(Fault::DropReply) => Err(Close::Fault),
        Some(Fault::Withhold) => Err(Close::Withheld),
        _ => Ok(match reply {
            Reply::Send(response) => Some(*response),
            Reply::Nothing => None,
        }),
    }
}

/// Reads one frame, without its length. The buffer grows with the bytes that arrive, never with
/// what a length claims.
async fn read_frame(stream: &mut TcpStream, buffer: &mut BytesMut) -> Result<Bytes, Close> {
    loop {
        if let Some(head) = buffer.first_chunk::<4>() {
            let claimed = i32::from_be_bytes(*head);
            let len = usize::try_from(claimed)
                .ok()
                .filter(|len| *len <= MAX_FRAME);
            let len = len.ok_or(Close::FrameLength(claimed))?;
            if buffer.len() >= len + 4 {
                buffer.advance(4);
                let frame = buffer.split_to(len).freeze();
                if buffer.is_empty() && len > KEEP_BUFFER {
                    *buffer = BytesMut::new();
                }
                return Ok(frame);
            }
        }
        if buffer.capacity() - buffer.len() < 4096 {
            let more = buffer.len().clamp(16 << 10, 8 << 20);
            buffer.reserve(more);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(Close::ByClient);
        }
    }
}
