//! The Kafka wire protocol at the connection's edge: frame bytes → typed [`Request`], typed
//! [`Response`] → frame bytes.
//!
//! Data flows in through [`decode`]: header by hand, then [`shape`] walks the body and proves that
//! every length in it is backed by bytes, and only then the generated decoder runs. It must never
//! hand unproven bytes to the generated decoder: that reserves memory for whatever element count
//! a frame claims, and a failed allocation aborts the process.

mod refusal;
pub mod shape;

pub use refusal::refusal;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion};

use shape::Shape;

/// Why a frame was refused. The connection is closed: the stream cannot be trusted any more.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("frame ends within the request header")]
    TruncatedHeader,
    #[error("API key {0} is not served")]
    UnknownApi(i16),
    #[error("{api} version {version} is not served")]
    UnsupportedVersion { api: &'static str, version: i16 },
    #[error("malformed {api} request: {reason}")]
    Malformed { api: &'static str, reason: String },
    #[error("{api} response cannot be encoded: {reason}")]
    Encode { api: &'static str, reason: String },
}

/// What every request carries before its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub api_key: i16,
    pub version: i16,
    pub correlation_id: i32,
    pub client_id: String,
}

/// One served API: key, versions and the layout of its request.
pub struct Api {
    pub name: &'static str,
    pub key: i16,
    pub min: i16,
    pub max: i16,
    layout: &'static str,
}

macro_rules! apis {
    ($($name:ident $key:literal $min:literal ..= $max:literal $req:ident $resp:ident $layout:literal;)*) => {
        /// A decoded request of a served API.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Request { $($name($req)),* }

        /// The answer to a request of the same name.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Response { $($name($resp)),* }

        /// Every served API, in the order of its key's definition.
        pub const APIS: &[Api] = &[$(Api { name: stringify!($name), key: $key, min: $min, max: $max, layout: $layout }),*];

        impl Request {
            pub fn api_key(&self) -> i16 {
                match self { $(Request::$name(_) => $key),* }
            }

            fn header_version(key: i16, version: i16) -> i16 {
                match key { $($key => $req::header_version(version),)* _ => 1 }
            }

            fn decode_body(key: i16, version: i16, body: &mut Bytes) -> Result<Request, String> {
                match key {
                    $($key => $req::decode(body, version).map(Request::$name).map_err(|e| e.to_string()),)*
                    _ => Err("unknown API".to_owned()),
                }
            }
        }

        impl Response {
            pub fn name(&self) -> &'static str {
                match self { $(Response::$name(_) => stringify!($name)),* }
            }

            fn header_version(&self, version: i16) -> i16 {
                match self { $(Response::$name(_) => $resp::header_version(version)),* }
            }

            fn encode_body(&self, version: i16, out: &mut BytesMut) -> Result<(), String> {
                match self { $(Response::$name(r) => {
                    let size = r.compute_size(version).map_err(|e| e.to_string())?;
                    out.reserve(size);
                    r.encode(out, version).map_err(|e| e.to_string())
                }),* }
            }
        }
    };
}

// Layouts: see `shape`. 1 2 4 8 16 = bytes; s = string; b = bytes; [..] = array of structs;
// (..) = array of plain values; @a-b = present from version a to b. Tagged fields are implied.
apis! {
    Produce 0 3..=9 ProduceRequest ProduceResponse "s 2 4 [ s [ 4 b ] ]";
    Fetch 1 4..=12 FetchRequest FetchResponse "4 4 4 4 1 4@7 4@7 [ s [ 4 4@9 8 4@12 8@5 4 ] ] [ s ( 4 ) ]@7 s@11";
    ListOffsets 2 1..=8 ListOffsetsRequest ListOffsetsResponse "4 1@2 [ s [ 4 4@4 8 ] ]";
    Metadata 3 0..=12 MetadataRequest MetadataResponse "[ 16@10 s ] 1@4 1@8-10 1@8";
    OffsetCommit 8 2..=8 OffsetCommitRequest OffsetCommitResponse "s 4 s s@7 8@2-4 [ s [ 4 8 4@6 s ] ]";
    OffsetFetch 9 1..=8 OffsetFetchRequest OffsetFetchResponse "s@0-7 [ s ( 4 ) ]@0-7 [ s [ s ( 4 ) ] ]@8 1@7";
    FindCoordinator 10 0..=4 FindCoordinatorRequest FindCoordinatorResponse "s@0-3 1@1 ( s )@4";
    JoinGroup 11 0..=9 JoinGroupRequest JoinGroupResponse "s 4 4@1 s s@5 s [ s b ] s@8";
    Heartbeat 12 0..=4 HeartbeatRequest HeartbeatResponse "s 4 s s@3";
    LeaveGroup 13 0..=5 LeaveGroupRequest LeaveGroupResponse "s s@0-2 [ s s s@5 ]@3";
    SyncGroup 14 0..=5 SyncGroupRequest SyncGroupResponse "s 4 s s@3 s@5 s@5 [ s b ]";
    DescribeGroups 15 0..=5 DescribeGroupsRequest DescribeGroupsResponse "( s ) 1@3";
    ListGroups 16 0..=5 ListGroupsRequest ListGroupsResponse "( s )@4 ( s )@5";
    ApiVersions 18 0..=4 ApiVersionsRequest ApiVersionsResponse "s@3 s@3";
    CreateTopics 19 2..=7 CreateTopicsRequest CreateTopicsResponse "[ s 4 2 [ 4 ( 4 ) ] [ s s ] ] 4 1";
    DeleteTopics 20 1..=6 DeleteTopicsRequest DeleteTopicsResponse "[ s 16 ]@6 ( s )@0-5 4";
    DeleteRecords 21 0..=2 DeleteRecordsRequest DeleteRecordsResponse "[ s [ 4 8 ] ] 4";
    InitProducerId 22 0..=4 InitProducerIdRequest InitProducerIdResponse "s 4 8@3 2@3";
    OffsetForLeaderEpoch 23 2..=4 OffsetForLeaderEpochRequest OffsetForLeaderEpochResponse "4@3 [ s [ 4 4 4 ] ]";
    AddPartitionsToTxn 24 0..=3 AddPartitionsToTxnRequest AddPartitionsToTxnResponse "s 8 2 [ s ( 4 ) ]";
    AddOffsetsToTxn 25 0..=3 AddOffsetsToTxnRequest AddOffsetsToTxnResponse "s 8 2 s";
    EndTxn 26 0..=3 EndTxnRequest EndTxnResponse "s 8 2 1";
    TxnOffsetCommit 28 0..=3 TxnOffsetCommitRequest TxnOffsetCommitResponse "s s 8 2 4@3 s@3 s@3 [ s [ 4 8 4@2 s ] ]";
    DescribeConfigs 32 1..=4 DescribeConfigsRequest DescribeConfigsResponse "[ 1 s ( s ) ] 1 1@3";
    AlterConfigs 33 0..=2 AlterConfigsRequest AlterConfigsResponse "[ 1 s [ s s ] ] 1";
    DescribeLogDirs 35 1..=4 DescribeLogDirsRequest DescribeLogDirsResponse "[ s ( 4 ) ]";
    CreatePartitions 37 0..=3 CreatePartitionsRequest CreatePartitionsResponse "[ s 4 [ ( 4 ) ] ] 4 1";
    DeleteGroups 42 0..=2 DeleteGroupsRequest DeleteGroupsResponse "( s )";
    IncrementalAlterConfigs 44 0..=1 IncrementalAlterConfigsRequest IncrementalAlterConfigsResponse "[ 1 s [ s 1 s ] ] 1";
    OffsetDelete 47 0..=0 OffsetDeleteRequest OffsetDeleteResponse "s [ s [ 4 ] ]";
    DescribeCluster 60 0..=1 DescribeClusterRequest DescribeClusterResponse "1 1@1";
    DescribeProducers 61 0..=0 DescribeProducersRequest DescribeProducersResponse "[ s ( 4 ) ]";
    DescribeTransactions 65 0..=0 DescribeTransactionsRequest DescribeTransactionsResponse "( s )";
    ListTransactions 66 0..=1 ListTransactionsRequest ListTransactionsResponse "( s ) ( 8 ) 8@1";
}

const API_VERSIONS_KEY: i16 = 18;

fn api(key: i16) -> Option<(usize, &'static Api)> {
    APIS.iter().enumerate().find(|(_, a)| a.key == key)
}

/// The name of an API key, for messages.
pub fn api_name(key: i16) -> &'static str {
    api(key).map_or("unknown", |(_, a)| a.name)
}

/// The API key of a name such as `EndTxn`.
pub fn api_key(name: &str) -> Option<i16> {
    APIS.iter().find(|a| a.name == name).map(|a| a.key)
}

/// The result of reading one frame.
pub enum Decoded {
    Request(Header, Box<Request>),
    /// ApiVersions in a version that is not served: the one request that is answered all the same
    /// (with version 0), since this is how a newer client finds out what it may use.
    UnknownApiVersions(Header),
}

/// Decodes one frame (without its length prefix).
pub fn decode(frame: Bytes) -> Result<Decoded, WireError> {
    let (header, mut body) = decode_header(frame)?;
    let (index, api) = api(header.api_key).ok_or(WireError::UnknownApi(header.api_key))?;
    if header.version < api.min || header.version > api.max {
        if header.api_key == API_VERSIONS_KEY {
            return Ok(Decoded::UnknownApiVersions(header));
        }
        return Err(WireError::UnsupportedVersion {
            api: api.name,
            version: header.version,
        });
    }
    let flexible = Request::header_version(header.api_key, header.version) >= 2;
    let malformed = |reason: String| WireError::Malformed {
        api: api.name,
        reason,
    };
    shapes()
        .get(index)
        .ok_or(WireError::UnknownApi(header.api_key))?
        .check(&body, header.version, flexible)
        .map_err(|reason| malformed(reason.to_owned()))?;
    // Second line of defence: the shape check makes a panic unlikely, not impossible.
    let (key, version) = (header.api_key, header.version);
    let decoded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        Request::decode_body(key, version, &mut body)
    }));
    match decoded {
        Ok(Ok(request)) => Ok(Decoded::Request(header, Box::new(request))),
        Ok(Err(reason)) => Err(malformed(reason)),
        Err(_) => Err(malformed("decoder failed".to_owned())),
    }
}

fn shapes() -> &'static [Shape] {
    static SHAPES: std::sync::LazyLock<Vec<Shape>> =
        std::sync::LazyLock::new(|| APIS.iter().map(|a| Shape::parse(a.layout)).collect());
    &SHAPES
}

fn decode_header(mut frame: Bytes) -> Result<(Header, Bytes), WireError> {
    if frame.len() < 8 {
        return Err(WireError::TruncatedHeader);
    }
    let api_key = frame.get_i16();
    let version = frame.get_i16();
    let correlation_id = frame.get_i32();
    let header_version = Request::header_version(api_key, version);
    let mut client_id = String::new();
    if header_version >= 1 {
        if frame.len() < 2 {
            return Err(WireError::TruncatedHeader);
        }
        let len = frame.get_i16();
        if len >= 0 {
            let len = len as usize;
            if frame.len() < len {
                return Err(WireError::TruncatedHeader);
            }
            client_id = String::from_utf8_lossy(&frame.split_to(len)).into_owned();
        }
    }
    if header_version >= 2 {
        let skip = shape::tagged_fields_len(&frame).ok_or(WireError::TruncatedHeader)?;
        frame.advance(skip);
    }
    Ok((
        Header {
            api_key,
            version,
            correlation_id,
            client_id,
        },
        frame,
    ))
}

/// Encodes a response as a whole frame, length prefix included.
pub fn encode(
    correlation_id: i32,
    version: i16,
    response: &Response,
) -> Result<BytesMut, WireError> {
    let mut out = BytesMut::with_capacity(64);
    out.put_i32(0);
    out.put_i32(correlation_id);
    if response.header_version(version) >= 1 {
        out.put_u8(0);
    }
    let fail = |reason: String| WireError::Encode {
        api: response.name(),
        reason,
    };
    response.encode_body(version, &mut out).map_err(fail)?;
    let len = i32::try_from(out.len() - 4).map_err(|_| fail("longer than 2 GiB".to_owned()))?;
    out[..4].copy_from_slice(&len.to_be_bytes());
    Ok(out)
}

#[cfg(test)]
mod tests;
