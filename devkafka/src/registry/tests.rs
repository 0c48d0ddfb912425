//! The registry's rules on its state, without HTTP.

use super::*;
use crate::storage::MemoryStorage;

fn schema(fields: &str) -> String {
    format!(r#"{{"type":"record","name":"T","fields":[{fields}]}}"#)
}

const A: &str = r#"{"name":"a","type":"long"}"#;
const B_DEFAULT: &str = r#"{"name":"b","type":"string","default":""}"#;
const B: &str = r#"{"name":"b","type":"string"}"#;

fn open() -> Registry {
    Registry::open(Box::new(MemoryStorage::new())).unwrap()
}

#[test]
fn one_schema_has_one_id() {
    let mut r = open();
    let one = r.register("s", &schema(A)).unwrap();
    let spaced = schema(A).replace(':', " : ");
    assert_eq!(r.register("t", &spaced).unwrap(), one);
    assert_eq!(r.register("s", &schema(A)).unwrap(), one);
    assert_eq!(r.versions("s").unwrap().len(), 1);
    assert_eq!(r.lookup("t", &schema(A)).unwrap().0.version, 1);
    assert_ne!(
        r.register("s", &schema(&format!("{A},{B_DEFAULT}")))
            .unwrap(),
        one
    );
    assert_eq!(r.version("s", "latest").unwrap().0.version, 2);
}

#[test]
fn levels_decide_what_may_follow() {
    let (old, with_default, without) = (
        schema(A),
        schema(&format!("{A},{B_DEFAULT}")),
        schema(&format!("{A},{B}")),
    );
    for (level, add_default, add_required, drop_required) in [
        ("BACKWARD", true, false, true),
        ("FORWARD", true, true, false),
        ("FULL", true, false, false),
        ("NONE", true, true, true),
    ] {
        let mut r = open();
        r.set_level(None, Some(level)).unwrap();
        r.register("s", &old).unwrap();
        assert_eq!(
            r.compatible("s", Some("latest"), &with_default)
                .unwrap()
                .is_empty(),
            add_default,
            "{level}"
        );
        assert_eq!(
            r.compatible("s", Some("1"), &without).unwrap().is_empty(),
            add_required,
            "{level}"
        );
        r.register("t", &without).unwrap();
        assert_eq!(r.register("t", &old).is_ok(), drop_required, "{level}");
    }
}

#[test]
fn transitive_levels_look_at_every_version() {
    let text = |default: &str| schema(&format!(r#"{A},{{"name":"c","type":"string"{default}}}"#));
    let (one, two, three) = (schema(A), text(r#","default":"x""#), text(""));
    let mut r = open();
    r.register("s", &one).unwrap();
    r.register("s", &two).unwrap();
    assert!(
        r.compatible("s", None, &three).unwrap().is_empty(),
        "latest only"
    );
    r.set_level(Some("s"), Some("backward_transitive")).unwrap();
    assert_eq!(r.register("s", &three).unwrap_err().code, 409);
}

#[test]
fn refusals_carry_the_known_codes() {
    let mut r = open();
    assert_eq!(r.versions("s").unwrap_err().code, 40401);
    r.register("s", &schema(A)).unwrap();
    assert_eq!(r.version("s", "9").unwrap_err().code, 40402);
    assert_eq!(r.version("s", "zero").unwrap_err().code, 42202);
    assert_eq!(r.schema(77).unwrap_err().code, 40403);
    assert_eq!(r.lookup("s", &schema(B)).unwrap_err().code, 40403);
    assert_eq!(r.register("s", "{").unwrap_err().code, 42201);
    assert_eq!(
        r.register("s", r#"{"type":"nonsense"}"#).unwrap_err().code,
        42201
    );
    assert_eq!(
        r.register("s", &"[".repeat(10_000)).unwrap_err().code,
        42201
    );
    assert_eq!(
        r.set_level(None, Some("SOMETIMES")).unwrap_err().code,
        42203
    );
}

#[test]
fn deleted_subjects_come_back_with_new_versions() {
    let mut r = open();
    let id = r.register("s", &schema(A)).unwrap();
    assert_eq!(r.delete_subject("s", true).unwrap_err().code, 40405);
    assert_eq!(r.delete_subject("s", false).unwrap(), [1]);
    assert_eq!(r.versions("s").unwrap_err().code, 40401);
    assert_eq!(r.schema(id).unwrap(), schema(A), "ids outlive subjects");
    assert_eq!(r.register("s", &schema(A)).unwrap(), id);
    assert_eq!(r.version("s", "latest").unwrap().0.version, 2);
}

#[test]
fn everything_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let storage = || Box::new(crate::storage::FileStorage::unlocked(dir.path()).unwrap());
    let mut r = Registry::open(storage()).unwrap();
    let id = r.register("s", &schema(A)).unwrap();
    r.set_level(Some("s"), Some("FULL")).unwrap();
    drop(r);
    let mut r = Registry::open(storage()).unwrap();
    assert_eq!(r.schema(id).unwrap(), schema(A));
    assert_eq!(r.level_of("s"), Level::Full);
    assert_eq!(r.register("u", &schema(B)).unwrap(), id + 1);
}
