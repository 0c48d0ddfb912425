//! The registry over HTTP: paths, bodies, codes as Confluent's clients expect them.

use finlake_devkafka::{Config, DevKafka};
use reqwest_registry::{Client, Method};
use serde_json::{Value, json};

struct Registry {
    url: String,
    client: Client,
    _broker: DevKafka,
}

impl Registry {
    fn start() -> Registry {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let broker = DevKafka::start(Config::default()).unwrap();
        Registry {
            url: broker.registry_url().unwrap(),
            client: Client::new(),
            _broker: broker,
        }
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request
                .header("content-type", "application/vnd.schemaregistry.v1+json")
                .body(body.to_string());
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (
            status,
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}")),
        )
    }
}

fn schema(fields: Value) -> Value {
    json!({ "schema": json!({ "type": "record", "name": "R", "fields": fields }).to_string() })
}

#[tokio::test]
async fn the_usual_calls() {
    let r = Registry::start();
    let one = schema(json!([{ "name": "a", "type": "long" }]));
    let two = schema(
        json!([{ "name": "a", "type": "long" }, { "name": "b", "type": "long", "default": 0 }]),
    );
    let bad = schema(json!([{ "name": "a", "type": "long" }, { "name": "c", "type": "long" }]));
    assert_eq!(
        r.call(Method::GET, "/subjects", None).await,
        (200, json!([]))
    );
    assert_eq!(
        r.call(
            Method::POST,
            "/subjects/t-value/versions",
            Some(one.clone())
        )
        .await,
        (200, json!({ "id": 1 }))
    );
    assert_eq!(
        r.call(
            Method::POST,
            "/subjects/t-value/versions",
            Some(two.clone())
        )
        .await,
        (200, json!({ "id": 2 }))
    );
    let (status, refused) = r
        .call(
            Method::POST,
            "/subjects/t-value/versions",
            Some(bad.clone()),
        )
        .await;
    assert_eq!(
        (status, &refused["error_code"]),
        (409, &json!(409)),
        "{refused}"
    );
    assert_eq!(
        r.call(Method::GET, "/subjects/t-value/versions", None)
            .await,
        (200, json!([1, 2]))
    );
    let (_, latest) = r
        .call(Method::GET, "/subjects/t-value/versions/latest", None)
        .await;
    assert_eq!(
        (&latest["version"], &latest["id"], &latest["subject"]),
        (&json!(2), &json!(2), &json!("t-value"))
    );
    assert_eq!(latest["schema"], two["schema"]);
    assert_eq!(
        r.call(Method::GET, "/schemas/ids/1", None).await,
        (200, json!({ "schema": one["schema"] }))
    );
    let (_, found) = r
        .call(Method::POST, "/subjects/t-value", Some(one.clone()))
        .await;
    assert_eq!(found["version"], 1);
    let check = "/compatibility/subjects/t-value/versions/latest";
    assert_eq!(
        r.call(Method::POST, check, Some(two)).await,
        (200, json!({ "is_compatible": true }))
    );
    assert_eq!(
        r.call(Method::POST, check, Some(bad.clone())).await,
        (200, json!({ "is_compatible": false }))
    );
    assert_eq!(
        r.call(Method::GET, "/config", None).await,
        (200, json!({ "compatibilityLevel": "BACKWARD" }))
    );
    let none = Some(json!({ "compatibility": "NONE" }));
    assert_eq!(
        r.call(Method::PUT, "/config/t-value", none.clone()).await,
        (200, json!({ "compatibility": "NONE" }))
    );
    assert_eq!(
        r.call(Method::GET, "/config/t-value", None).await,
        (200, json!({ "compatibilityLevel": "NONE" }))
    );
    assert_eq!(
        r.call(Method::POST, "/subjects/t-value/versions", Some(bad))
            .await,
        (200, json!({ "id": 3 }))
    );
    assert_eq!(
        r.call(Method::DELETE, "/subjects/t-value", None).await,
        (200, json!([1, 2, 3]))
    );
    assert_eq!(
        r.call(Method::GET, "/subjects", None).await,
        (200, json!([]))
    );
    assert_eq!(
        r.call(Method::GET, "/subjects?deleted=true", None).await,
        (200, json!(["t-value"]))
    );
}

#[tokio::test]
async fn the_known_error_codes() {
    let r = Registry::start();
    let ok = schema(json!([]));
    r.call(Method::POST, "/subjects/s/versions", Some(ok.clone()))
        .await;
    let broken = json!({ "schema": "{\"type\":\"what\"}" });
    let protobuf = json!({ "schema": "syntax = \"proto3\";", "schemaType": "PROTOBUF" });
    let other = schema(json!([{ "name": "x", "type": "int" }]));
    for (method, path, body, status, code) in [
        (Method::GET, "/subjects/none/versions", None, 404, 40401),
        (Method::GET, "/subjects/s/versions/7", None, 404, 40402),
        (Method::GET, "/schemas/ids/99", None, 404, 40403),
        (Method::POST, "/subjects/s", Some(other), 404, 40403),
        (
            Method::POST,
            "/subjects/s/versions",
            Some(broken),
            422,
            42201,
        ),
        (
            Method::POST,
            "/subjects/s/versions",
            Some(protobuf),
            422,
            42201,
        ),
        (
            Method::POST,
            "/subjects/s/versions",
            Some(json!([1])),
            422,
            42201,
        ),
        (
            Method::PUT,
            "/config",
            Some(json!({ "compatibility": "x" })),
            422,
            42203,
        ),
        (Method::DELETE, "/subjects/none", None, 404, 40401),
        (Method::GET, "/nowhere", None, 404, 404),
        (Method::POST, "/subjects", Some(ok), 405, 405),
    ] {
        let (got, body) = r.call(method.clone(), path, body).await;
        assert_eq!(
            (got, &body["error_code"]),
            (status, &json!(code)),
            "{method} {path}: {body}"
        );
    }
}
