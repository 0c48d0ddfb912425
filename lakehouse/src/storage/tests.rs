use super::*;

fn local() -> (tempfile::TempDir, FileIO, String) {
    let dir = tempfile::tempdir().unwrap();
    let base = format!("file://{}", dir.path().display());
    (dir, file_io(&BTreeMap::new()), base)
}

fn names(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// What holds for every kind of storage.
async fn behaves(io: &FileIO, base: &str) {
    let file = format!("{base}/a/b=1/part.parquet");
    assert!(!io.exists(&file).await.unwrap());
    io.delete(&file).await.unwrap();
    let absent = io.new_input(&file).unwrap().read().await.unwrap_err();
    assert!(absent.to_string().contains(&file), "{absent}");

    io.new_output(&file)
        .unwrap()
        .write("0123456789".into())
        .await
        .unwrap();
    let input = io.new_input(&file).unwrap();
    assert_eq!(input.metadata().await.unwrap().size, 10);
    assert_eq!(input.read().await.unwrap(), "0123456789");
    let reader = input.reader().await.unwrap();
    assert_eq!(reader.read(2..5).await.unwrap(), "234");
    assert_eq!(reader.read(3..3).await.unwrap(), "");
    assert!(
        reader.read(8..11).await.is_err(),
        "a range beyond the end is not cut short"
    );
    let backwards = std::ops::Range { start: 5, end: 2 };
    assert!(reader.read(backwards).await.is_err());

    // Overwriting replaces the whole.
    io.new_output(&file)
        .unwrap()
        .write("new".into())
        .await
        .unwrap();
    assert_eq!(io.new_input(&file).unwrap().read().await.unwrap(), "new");

    // A large file in many pieces, of which none is there before the close.
    let large = format!("{base}/a/large.bin");
    let mut writer = io.new_output(&large).unwrap().writer().await.unwrap();
    let piece = Bytes::from((0..300_007u32).map(|i| (i % 251) as u8).collect::<Vec<_>>());
    for _ in 0..80 {
        writer.write(piece.clone()).await.unwrap();
    }
    assert!(!io.exists(&large).await.unwrap());
    writer.close().await.unwrap();
    assert!(writer.close().await.is_err());
    let input = io.new_input(&large).unwrap();
    assert_eq!(input.metadata().await.unwrap().size, 80 * 300_007);
    let reader = input.reader().await.unwrap();
    for at in [0, 300_007, 9 << 20, 79 * 300_007] {
        let want: Vec<u8> = (at..at + 5).map(|i| ((i % 300_007) % 251) as u8).collect();
        assert_eq!(reader.read(at..at + 5).await.unwrap(), want);
    }

    // A prefix goes with everything under it, and nothing beside it.
    let beside = format!("{base}/ab.txt");
    io.new_output(&beside)
        .unwrap()
        .write("x".into())
        .await
        .unwrap();
    io.delete_prefix(format!("{base}/a")).await.unwrap();
    assert!(!io.exists(&file).await.unwrap() && !io.exists(&large).await.unwrap());
    assert!(io.exists(&beside).await.unwrap());
    let paths = futures::stream::iter([beside.clone(), format!("{base}/never-there")]);
    io.delete_stream(paths).await.unwrap();
    assert!(!io.exists(&beside).await.unwrap());
}

#[tokio::test]
async fn local_files_behave() {
    let (_dir, io, base) = local();
    behaves(&io, &base).await;
}

#[tokio::test]
async fn memory_behaves() {
    behaves(&file_io(&BTreeMap::new()), "memory://lake").await;
}

/// Runs against a real store where `FINLAKE_TEST_S3_ENDPOINT`, `FINLAKE_TEST_S3_BUCKET` and the
/// `AWS_…` keys are set.
#[tokio::test]
async fn s3_behaves() {
    let (Ok(endpoint), Ok(bucket)) = (
        std::env::var("FINLAKE_TEST_S3_ENDPOINT"),
        std::env::var("FINLAKE_TEST_S3_BUCKET"),
    ) else {
        eprintln!("no S3 store given: FINLAKE_TEST_S3_ENDPOINT and FINLAKE_TEST_S3_BUCKET");
        return;
    };
    let props = BTreeMap::from([
        ("s3.endpoint".to_owned(), endpoint),
        ("s3.path-style-access".to_owned(), "true".to_owned()),
    ]);
    let base = format!("s3://{bucket}/{}", uuid::Uuid::new_v4());
    behaves(&file_io(&props), &base).await;
    let io = file_io(&props);
    io.new_output(format!("{base}/d/x"))
        .unwrap()
        .write("123".into())
        .await
        .unwrap();
    let found = list(&props, &format!("{base}/d")).await.unwrap();
    assert_eq!(
        (found[0].location.clone(), found[0].size),
        (format!("{base}/d/x"), 3)
    );
}

#[tokio::test]
async fn every_spelling_of_a_local_path_is_the_same_file() {
    let (dir, io, base) = local();
    io.new_output(format!("{base}/x y%20z"))
        .unwrap()
        .write("1".into())
        .await
        .unwrap();
    assert_eq!(
        names(dir.path()),
        ["x y%20z"],
        "names are taken literally, as other engines do"
    );
    let plain = dir.path().join("x y%20z").display().to_string();
    for location in [format!("file:{plain}"), plain] {
        assert!(io.exists(&location).await.unwrap(), "{location}");
    }
}

#[tokio::test]
async fn an_abandoned_write_leaves_nothing() {
    let (dir, io, base) = local();
    let mut writer = io
        .new_output(format!("{base}/x"))
        .unwrap()
        .writer()
        .await
        .unwrap();
    writer.write(Bytes::from(vec![0; 3 << 20])).await.unwrap();
    assert_eq!(
        names(dir.path()).len(),
        1,
        "the data waits under another name"
    );
    drop(writer);
    assert_eq!(names(dir.path()), [""; 0]);
}

#[tokio::test]
async fn a_reader_of_a_replaced_file_sees_one_version() {
    let (_dir, io, base) = local();
    let file = format!("{base}/x");
    io.new_output(&file)
        .unwrap()
        .write("old old".into())
        .await
        .unwrap();
    let reader = io.new_input(&file).unwrap().reader().await.unwrap();
    io.new_output(&file)
        .unwrap()
        .write("new".into())
        .await
        .unwrap();
    assert_eq!(reader.read(0..7).await.unwrap(), "old old");
}

#[tokio::test]
async fn listing_finds_what_is_there() {
    let (dir, io, base) = local();
    for name in ["t/b", "t/a/1", "u"] {
        io.new_output(format!("{base}/{name}"))
            .unwrap()
            .write("123".into())
            .await
            .unwrap();
    }
    std::fs::write(dir.path().join("t/.x.1-0.finlake-tmp"), "").unwrap();
    let found = list(&BTreeMap::new(), &format!("{base}/t/")).await.unwrap();
    let locations: Vec<&str> = found.iter().map(|l| &l.location[base.len()..]).collect();
    assert_eq!(locations, ["/t/.x.1-0.finlake-tmp", "/t/a/1", "/t/b"]);
    assert_eq!(found[1].size, 3);
    assert!(found[1].modified > 1_600_000_000_000_000);
    assert!(
        list(&BTreeMap::new(), &format!("{base}/none"))
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn unknown_schemes_say_what_is_possible() {
    let io = file_io(&BTreeMap::new());
    for location in ["gs://b/x", "relative/path", "file://host/x"] {
        let error = io.exists(location).await.unwrap_err().to_string();
        assert!(error.contains("s3://"), "{error}");
    }
}

#[test]
fn secrets_are_neither_shown_nor_serialised() {
    let props = BTreeMap::from([
        ("s3.secret-access-key".to_owned(), "hunter2".to_owned()),
        ("s3.session-token".to_owned(), "swordfish".to_owned()),
        ("s3.region".to_owned(), "here".to_owned()),
    ]);
    let storage = ObjectStorage::new(Props(props.clone()));
    for text in [
        format!("{:?}", file_io(&props)),
        format!("{storage:?}"),
        serde_json::to_string(&storage).unwrap(),
    ] {
        assert!(text.contains("here"), "{text}");
        assert!(
            !text.contains("hunter2") && !text.contains("swordfish"),
            "{text}"
        );
    }
}
