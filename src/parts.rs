//! The parts of the application, made from the one [`Config`]: what each crate wants to be told.
//!
//! Only translation: nothing is connected here and no default is decided here.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use finlake_lakehouse::{Catalog as LakeCatalog, LakeConfig, Lakehouse, Upkeep};
use finlake_schemas::registry::RegistryConfig;

use crate::config::{Catalog, Config};

/// The registry's address and credentials.
pub fn registry(config: &Config) -> RegistryConfig {
    let mut registry = RegistryConfig::new(&config.registry.url);
    registry.user.clone_from(&config.registry.user);
    registry.password = config
        .registry
        .password
        .as_ref()
        .map(|s| s.reveal().to_owned());
    registry
}

/// Catalog, warehouse and upkeep.
pub fn lake(config: &Config) -> LakeConfig {
    let lake = &config.lake;
    let mut storage: BTreeMap<String, String> = lake.properties.0.clone().into_iter().collect();
    let mut put = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            storage.insert(key.to_owned(), value);
        }
    };
    put("s3.endpoint", lake.s3.endpoint.clone());
    put("s3.region", lake.s3.region.clone());
    put("s3.access-key-id", lake.s3.access_key_id.clone());
    put(
        "s3.secret-access-key",
        lake.s3
            .secret_access_key
            .as_ref()
            .map(|s| s.reveal().to_owned()),
    );
    put(
        "s3.session-token",
        lake.s3
            .session_token
            .as_ref()
            .map(|s| s.reveal().to_owned()),
    );
    if lake.s3.path_style {
        put("s3.path-style-access", Some("true".to_owned()));
    }
    let catalog = match &lake.catalog {
        Catalog::Sqlite { path } => LakeCatalog::Sqlite { path: path.clone() },
        Catalog::Rest { uri } => {
            let mut props: HashMap<String, String> =
                lake.properties.0.clone().into_iter().collect();
            for (key, secret) in [
                ("token", &lake.rest_token),
                ("credential", &lake.rest_credential),
            ] {
                if let Some(secret) = secret {
                    props.insert(key.to_owned(), secret.reveal().to_owned());
                }
            }
            LakeCatalog::Rest {
                uri: uri.clone(),
                warehouse: (!lake.warehouse.is_empty()).then(|| lake.warehouse.clone()),
                props,
            }
        }
    };
    LakeConfig {
        catalog,
        catalog_name: lake.catalog_name.clone(),
        warehouse: lake.warehouse.clone(),
        storage,
        namespace_prefix: lake.namespace_prefix.clone(),
        buckets: lake.buckets,
        gold_windows: config.gold.windows.clone(),
        kafka_partitions: config.kafka.partitions,
        upkeep: Upkeep {
            snapshots: lake.keep_snapshots,
            snapshot_age: lake.keep_snapshots_for,
            metadata_files: lake.keep_metadata_files,
            manifests: lake.merge_manifests_at,
            ..Upkeep::default()
        },
        ..LakeConfig::local(config.data.path())
    }
}

/// Opens the lakehouse of the configuration.
///
/// # Errors
/// Those of [`Lakehouse::open`].
pub async fn open_lake(config: &Config) -> Result<Lakehouse, finlake_lakehouse::LakeError> {
    Lakehouse::open(lake(config)).await
}

/// A duration in µs, the unit of everything that is compared with record times.
pub fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Inputs;

    #[test]
    fn further_properties_reach_storage_and_catalog() {
        let dir = tempfile::tempdir().unwrap();
        let text = "[lake]\ncatalog = \"rest\"\nuri = \"http://h:1\"\nwarehouse = \"wh\"\nkeep_metadata_files = 7\n\
                    properties = { \"header.x-team\" = \"desk\" }\n";
        std::fs::write(dir.path().join("finlake.toml"), text).unwrap();
        let mut inputs = Inputs {
            data: Some(dir.path().to_owned()),
            ..Inputs::default()
        };
        inputs
            .env
            .insert("FINLAKE_LAKE_REST_TOKEN".into(), "t".into());
        let config = Config::load(&inputs).unwrap();
        let lake = lake(&config);
        assert_eq!(lake.storage["header.x-team"], "desk");
        assert_eq!(lake.upkeep.metadata_files, 7);
        let LakeCatalog::Rest { props, .. } = lake.catalog else {
            panic!("a REST catalog was asked for")
        };
        assert_eq!(
            (props["header.x-team"].as_str(), props["token"].as_str()),
            ("desk", "t")
        );
    }
}
