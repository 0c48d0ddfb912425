//! The Iceberg REST catalog: load, create and an own commit request.
//!
//! Uses `iceberg-catalog-rest`'s wire types and speaks HTTP itself, because that crate's catalog
//! neither exposes a compare-and-swap (its commit goes through a rebasing transaction) nor its
//! client. A 409 is a lost swap; 5xx, a timeout or a broken connection are an unknown outcome.
//! Requirements sent with a commit: the table's UUID and the snapshot that `main` points to.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use iceberg::{TableCreation, TableIdent};
use iceberg_catalog_rest::{
    CommitTableRequest, CommitTableResponse, CreateTableRequest, LoadTableResult,
};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde::Deserialize;

use crate::boxed;
use crate::catalog::{CatalogOps, Loaded, Proposal, RestProps, Staged, Swap};
use crate::error::{LakeError, Result};

/// REST catalog client.
pub struct RestCatalog {
    client: Client,
    uri: String,
    props: RestProps,
    token: tokio::sync::RwLock<Option<String>>,
}

impl std::fmt::Debug for RestCatalog {
    // Properties hold credentials: never printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestCatalog")
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize, Default)]
struct ServerConfig {
    #[serde(default)]
    overrides: HashMap<String, String>,
    #[serde(default)]
    defaults: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Token {
    access_token: String,
}

#[derive(Deserialize)]
struct Listing {
    identifiers: Vec<TableIdent>,
}

#[derive(Deserialize)]
struct Namespaces {
    namespaces: Vec<Vec<String>>,
    #[serde(rename = "next-page-token", default)]
    next_page_token: Option<String>,
}

impl RestCatalog {
    /// Asks the server for its configuration. Properties: `token`, or `credential` (`id:secret`)
    /// with `oauth2-server-uri` and `scope`; `prefix`; `header.<name>`.
    ///
    /// # Errors
    /// `Catalog` if the server does not answer, `Config` for a malformed header.
    #[boxed]
    pub async fn open(uri: &str, warehouse: Option<&str>, props: RestProps) -> Result<RestCatalog> {
        let mut headers = reqwest::header::HeaderMap::new();
        for (name, value) in &props {
            let Some(name) = name.strip_prefix("header.") else {
                continue;
            };
            let bad = |_| LakeError::Config(format!("catalog header {name} is malformed"));
            headers.insert(
                reqwest::header::HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad(()))?,
                value.parse().map_err(|_| bad(()))?,
            );
        }
        let client = Client::builder()
            .default_headers(headers)
            .timeout(Duration::from_secs(30))
            .connect_timeout(Duration::from_secs(5))
            .build()
            .map_err(LakeError::catalog)?;
        let mut catalog = RestCatalog {
            client,
            uri: uri.trim_end_matches('/').to_string(),
            token: tokio::sync::RwLock::new(props.get("token").cloned()),
            props,
        };
        catalog.login().await?;
        let mut request = catalog.client.get(format!("{}/v1/config", catalog.uri));
        if let Some(w) = warehouse {
            request = request.query(&[("warehouse", w)]);
        }
        let response = catalog.send(request).await?;
        if response.status().is_success() {
            let config: ServerConfig = response.json().await.map_err(LakeError::catalog)?;
            let mut merged = config.defaults;
            merged.extend(std::mem::take(&mut catalog.props));
            merged.extend(config.overrides);
            if let Some(uri) = merged.get("uri") {
                catalog.uri = uri.trim_end_matches('/').to_string();
            }
            catalog.props = merged;
        }
        Ok(catalog)
    }

    /// Exchanges `credential` for a token, if there is one and no token.
    async fn login(&self) -> Result<()> {
        let Some(credential) = self.props.get("credential") else {
            return Ok(());
        };
        if self.props.contains_key("token") {
            return Ok(());
        }
        let (id, secret) = credential
            .split_once(':')
            .unwrap_or(("", credential.as_str()));
        let endpoint = match self.props.get("oauth2-server-uri") {
            Some(uri) => uri.clone(),
            None => format!("{}/v1/oauth/tokens", self.uri),
        };
        let scope = self.props.get("scope").map_or("catalog", String::as_str);
        let response = self
            .client
            .post(endpoint)
            .form(&[
                ("grant_type", "client_credentials"),
                ("client_id", id),
                ("client_secret", secret),
                ("scope", scope),
            ])
            .send()
            .await
            .map_err(LakeError::catalog)?
            .error_for_status()
            .map_err(LakeError::catalog)?;
        let token: Token = response.json().await.map_err(LakeError::catalog)?;
        *self.token.write().await = Some(token.access_token);
        Ok(())
    }

    fn url(&self, parts: &[&str]) -> String {
        let prefix = self.props.get("prefix").map(String::as_str);
        [self.uri.as_str(), "v1"]
            .into_iter()
            .chain(prefix)
            .chain(parts.iter().copied())
            .collect::<Vec<_>>()
            .join("/")
    }

    fn table_url(&self, table: &TableIdent) -> String {
        self.url(&[
            "namespaces",
            &table.namespace().to_url_string(),
            "tables",
            table.name(),
        ])
    }

    async fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &*self.token.read().await {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends; on 401 fetches a new token once.
    async fn send(&self, request: RequestBuilder) -> Result<reqwest::Response> {
        let again = request.try_clone();
        let response = self
            .authorized(request)
            .await
            .send()
            .await
            .map_err(LakeError::catalog)?;
        match again {
            Some(again)
                if response.status() == StatusCode::UNAUTHORIZED
                    && self.props.contains_key("credential") =>
            {
                self.login().await?;
                self.authorized(again)
                    .await
                    .send()
                    .await
                    .map_err(LakeError::catalog)
            }
            _ => Ok(response),
        }
    }

    fn loaded(result: LoadTableResult) -> Result<Loaded> {
        Ok(Loaded {
            location: result
                .metadata_location
                .ok_or_else(|| LakeError::Catalog("answer without a metadata location".into()))?,
            metadata: result.metadata.into(),
        })
    }
}

async fn refused(response: reqwest::Response) -> LakeError {
    let status = response.status();
    let body = response.text().await.unwrap_or_default();
    let body: String = body.chars().take(300).collect();
    LakeError::Catalog(format!("{status}: {body}"))
}

#[async_trait]
impl CatalogOps for RestCatalog {
    async fn load(&self, table: &TableIdent) -> Result<Option<Loaded>> {
        let response = self.send(self.client.get(self.table_url(table))).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            s if s.is_success() => Ok(Some(Self::loaded(
                response.json().await.map_err(LakeError::catalog)?,
            )?)),
            _ => Err(refused(response).await),
        }
    }

    async fn create(&self, table: &TableIdent, creation: TableCreation) -> Result<Loaded> {
        let body = serde_json::json!({
            "namespace": table.namespace().as_ref(), "properties": {}
        });
        let made = self
            .send(self.client.post(self.url(&["namespaces"])).json(&body))
            .await?;
        if !made.status().is_success() && made.status() != StatusCode::CONFLICT {
            return Err(refused(made).await);
        }
        let request = CreateTableRequest {
            name: creation.name,
            location: creation.location,
            schema: creation.schema,
            partition_spec: creation.partition_spec,
            write_order: creation.sort_order,
            stage_create: None,
            properties: creation.properties,
        };
        let url = self.url(&["namespaces", &table.namespace().to_url_string(), "tables"]);
        let response = self.send(self.client.post(url).json(&request)).await?;
        match response.status() {
            StatusCode::CONFLICT => self.load(table).await?.ok_or_else(|| {
                LakeError::Catalog(format!("{table} was created and dropped meanwhile"))
            }),
            s if s.is_success() => Self::loaded(response.json().await.map_err(LakeError::catalog)?),
            _ => Err(refused(response).await),
        }
    }

    async fn stage(
        &self,
        _table: &TableIdent,
        _base: &Loaded,
        proposal: Proposal,
    ) -> Result<Staged> {
        Ok(Staged {
            location: None,
            proposal,
        })
    }

    async fn swap(&self, table: &TableIdent, _base: &Loaded, staged: Staged) -> Result<Swap> {
        let body = CommitTableRequest {
            identifier: Some(table.clone()),
            requirements: staged.proposal.requirements,
            updates: staged.proposal.updates,
        };
        let request = self
            .client
            .request(Method::POST, self.table_url(table))
            .json(&body);
        let response = match self.send(request).await {
            Ok(r) => r,
            Err(e) => return Ok(Swap::Unknown(e.to_string())),
        };
        match response.status() {
            StatusCode::CONFLICT => Ok(Swap::Lost),
            s if s.is_success() => match response.json::<CommitTableResponse>().await {
                Ok(done) => Ok(Swap::Done(Loaded {
                    location: done.metadata_location,
                    metadata: done.metadata.into(),
                })),
                Err(e) => Ok(Swap::Unknown(e.to_string())),
            },
            s if s.is_server_error() || s == StatusCode::REQUEST_TIMEOUT => {
                Ok(Swap::Unknown(refused(response).await.to_string()))
            }
            _ => Err(refused(response).await),
        }
    }

    fn owns_metadata_files(&self) -> bool {
        false
    }

    async fn list(&self, namespace: &str) -> Result<Vec<String>> {
        let url = self.url(&["namespaces", namespace, "tables"]);
        let response = self.send(self.client.get(url)).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(Vec::new()),
            s if s.is_success() => {
                let listing: Listing = response.json().await.map_err(LakeError::catalog)?;
                let mut names: Vec<String> = listing
                    .identifiers
                    .iter()
                    .map(|t| t.name().to_string())
                    .collect();
                names.sort();
                Ok(names)
            }
            _ => Err(refused(response).await),
        }
    }

    async fn namespaces(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut page: Option<String> = None;
        loop {
            let mut request = self.client.get(self.url(&["namespaces"]));
            if let Some(token) = &page {
                request = request.query(&[("pageToken", token)]);
            }
            let response = self.send(request).await?;
            if !response.status().is_success() {
                return Err(refused(response).await);
            }
            let listed: Namespaces = response.json().await.map_err(LakeError::catalog)?;
            let single = listed.namespaces.into_iter().filter(|n| n.len() == 1);
            names.extend(single.flatten());
            page = listed.next_page_token.filter(|t| !t.is_empty());
            if page.is_none() {
                names.sort();
                return Ok(names);
            }
        }
    }

    async fn drop(&self, table: &TableIdent) -> Result<()> {
        let response = self.send(self.client.delete(self.table_url(table))).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(()),
            s if s.is_success() => Ok(()),
            _ => Err(refused(response).await),
        }
    }

    async fn drop_namespace(&self, namespace: &str) -> Result<()> {
        let url = self.url(&["namespaces", namespace]);
        let response = self.send(self.client.delete(url)).await?;
        match response.status() {
            // Somebody put a table there meanwhile: it stays.
            StatusCode::NOT_FOUND | StatusCode::CONFLICT => Ok(()),
            s if s.is_success() => Ok(()),
            _ => Err(refused(response).await),
        }
    }
}
