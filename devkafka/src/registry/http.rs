//! The registry's HTTP interface, as Confluent's clients and tools speak it.
//!
//! Bodies are taken whatever their content type says; answers carry the registry's own. Nothing is
//! decided here.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Refused, Registry, Version, refused};

type Shared = Arc<Mutex<Registry>>;
type Answer = Result<Reply, Refused>;

struct Reply(Value);

const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

fn respond(status: StatusCode, body: &Value) -> Response {
    (
        status,
        [(header::CONTENT_TYPE, CONTENT_TYPE)],
        body.to_string(),
    )
        .into_response()
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        respond(StatusCode::OK, &self.0)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        respond(
            status,
            &json!({ "error_code": self.code, "message": self.message }),
        )
    }
}

/// The registry's routes.
pub fn router(registry: Registry) -> Router {
    Router::new()
        .route("/", get(|| async { Reply(json!({})) }))
        .route("/subjects", get(subjects))
        .route("/subjects/{subject}", post(lookup).delete(delete_subject))
        .route("/subjects/{subject}/versions", get(versions).post(register))
        .route(
            "/subjects/{subject}/versions/{version}",
            get(version).delete(delete_version),
        )
        .route(
            "/subjects/{subject}/versions/{version}/schema",
            get(version_schema),
        )
        .route("/schemas/types", get(|| async { Reply(json!(["AVRO"])) }))
        .route("/schemas/ids/{id}", get(schema))
        .route("/schemas/ids/{id}/schema", get(bare_schema))
        .route("/schemas/ids/{id}/versions", get(uses))
        .route(
            "/compatibility/subjects/{subject}/versions",
            post(compatible_all),
        )
        .route(
            "/compatibility/subjects/{subject}/versions/{version}",
            post(compatible),
        )
        .route("/config", get(global_level).put(set_global_level))
        .route(
            "/config/{subject}",
            get(level).put(set_level).delete(unset_level),
        )
        .route(
            "/mode",
            get(|| async { Reply(json!({ "mode": "READWRITE" })) }),
        )
        .fallback(|| async { refused(404, 404, "HTTP 404 Not Found") })
        .method_not_allowed_fallback(|| async { refused(405, 405, "HTTP 405 Method Not Allowed") })
        .layer(DefaultBodyLimit::max(4 << 20))
        .with_state(Arc::new(Mutex::new(registry)))
}

#[derive(Deserialize)]
struct SchemaBody {
    schema: String,
    #[serde(rename = "schemaType")]
    schema_type: Option<String>,
    references: Option<Vec<Value>>,
}

fn schema_of(body: &Bytes) -> Result<String, Refused> {
    let body: SchemaBody = serde_json::from_slice(body)
        .map_err(|e| refused(422, 42201, format!("Invalid request: {e}")))?;
    if body.schema_type.as_deref().is_some_and(|t| t != "AVRO") {
        return Err(Refused::invalid("only AVRO is supported"));
    }
    if body.references.is_some_and(|r| !r.is_empty()) {
        return Err(Refused::invalid("references are not supported"));
    }
    Ok(body.schema)
}

fn level_of(body: &Bytes) -> Result<String, Refused> {
    #[derive(Deserialize)]
    struct LevelBody {
        compatibility: String,
    }
    let body: LevelBody = serde_json::from_slice(body)
        .map_err(|e| refused(422, 42203, format!("Invalid request: {e}")))?;
    Ok(body.compatibility)
}

#[derive(Deserialize, Default)]
struct Flags {
    #[serde(default)]
    deleted: bool,
    #[serde(default)]
    permanent: bool,
    #[serde(default, rename = "defaultToGlobal")]
    default_to_global: bool,
    #[serde(default)]
    verbose: bool,
}

fn described((v, schema): (Version, String)) -> Value {
    json!({ "subject": v.subject, "version": v.version, "id": v.id, "schema": schema })
}

async fn subjects(State(r): State<Shared>, Query(flags): Query<Flags>) -> Answer {
    Ok(Reply(json!(r.lock().subjects(flags.deleted))))
}

async fn versions(State(r): State<Shared>, Path(subject): Path<String>) -> Answer {
    let numbers: Vec<i32> = r
        .lock()
        .versions(&subject)?
        .iter()
        .map(|v| v.version)
        .collect();
    Ok(Reply(json!(numbers)))
}

async fn version(
    State(r): State<Shared>,
    Path((subject, version)): Path<(String, String)>,
) -> Answer {
    Ok(Reply(described(r.lock().version(&subject, &version)?)))
}

async fn version_schema(
    State(r): State<Shared>,
    Path((subject, version)): Path<(String, String)>,
) -> Answer {
    let (_, schema) = r.lock().version(&subject, &version)?;
    Ok(Reply(serde_json::from_str(&schema).unwrap_or(Value::Null)))
}

async fn register(State(r): State<Shared>, Path(subject): Path<String>, body: Bytes) -> Answer {
    let id = r.lock().register(&subject, &schema_of(&body)?)?;
    Ok(Reply(json!({ "id": id })))
}

async fn lookup(State(r): State<Shared>, Path(subject): Path<String>, body: Bytes) -> Answer {
    Ok(Reply(described(
        r.lock().lookup(&subject, &schema_of(&body)?)?,
    )))
}

async fn schema(State(r): State<Shared>, Path(id): Path<String>) -> Answer {
    Ok(Reply(json!({ "schema": by_id(&r, &id)? })))
}

async fn bare_schema(State(r): State<Shared>, Path(id): Path<String>) -> Answer {
    Ok(Reply(
        serde_json::from_str(&by_id(&r, &id)?).unwrap_or(Value::Null),
    ))
}

fn by_id(r: &Shared, id: &str) -> Result<String, Refused> {
    r.lock().schema(id.parse().map_err(|_| Refused::schema())?)
}

async fn uses(State(r): State<Shared>, Path(id): Path<String>) -> Answer {
    let uses = r.lock().uses(id.parse().map_err(|_| Refused::schema())?)?;
    let uses: Vec<Value> = uses
        .iter()
        .map(|v| json!({ "subject": v.subject, "version": v.version }))
        .collect();
    Ok(Reply(json!(uses)))
}

async fn compatible_all(
    State(r): State<Shared>,
    Path(subject): Path<String>,
    Query(flags): Query<Flags>,
    body: Bytes,
) -> Answer {
    Ok(verdict(
        r.lock().compatible(&subject, None, &schema_of(&body)?)?,
        flags.verbose,
    ))
}

async fn compatible(
    State(r): State<Shared>,
    Path((subject, version)): Path<(String, String)>,
    Query(flags): Query<Flags>,
    body: Bytes,
) -> Answer {
    Ok(verdict(
        r.lock()
            .compatible(&subject, Some(&version), &schema_of(&body)?)?,
        flags.verbose,
    ))
}

fn verdict(problems: Vec<String>, verbose: bool) -> Reply {
    let mut out = json!({ "is_compatible": problems.is_empty() });
    if verbose {
        out["messages"] = json!(problems);
    }
    Reply(out)
}

async fn global_level(State(r): State<Shared>) -> Answer {
    Ok(Reply(
        json!({ "compatibilityLevel": r.lock().level(None)? }),
    ))
}

async fn level(
    State(r): State<Shared>,
    Path(subject): Path<String>,
    Query(flags): Query<Flags>,
) -> Answer {
    let registry = r.lock();
    let level = if flags.default_to_global {
        registry.level_of(&subject)
    } else {
        registry.level(Some(&subject))?
    };
    Ok(Reply(json!({ "compatibilityLevel": level })))
}

async fn set_global_level(State(r): State<Shared>, body: Bytes) -> Answer {
    let level = r.lock().set_level(None, Some(&level_of(&body)?))?;
    Ok(Reply(json!({ "compatibility": level })))
}

async fn set_level(State(r): State<Shared>, Path(subject): Path<String>, body: Bytes) -> Answer {
    let level = r
        .lock()
        .set_level(Some(&subject), Some(&level_of(&body)?))?;
    Ok(Reply(json!({ "compatibility": level })))
}

async fn unset_level(State(r): State<Shared>, Path(subject): Path<String>) -> Answer {
    let mut registry = r.lock();
    let was = registry.level(Some(&subject))?;
    registry.set_level(Some(&subject), None)?;
    Ok(Reply(json!({ "compatibility": was })))
}

async fn delete_version(
    State(r): State<Shared>,
    Path((subject, version)): Path<(String, String)>,
) -> Answer {
    Ok(Reply(json!(r.lock().delete_version(&subject, &version)?)))
}

async fn delete_subject(
    State(r): State<Shared>,
    Path(subject): Path<String>,
    Query(flags): Query<Flags>,
) -> Answer {
    Ok(Reply(json!(
        r.lock().delete_subject(&subject, flags.permanent)?
    )))
}
