//! A span of Bronze in parts: the files of one partition folder at a time, whatever its day. A
//! symbol's rows all lie in one such folder (its own, or its bucket's), so each part is compared
//! by itself.

use std::collections::BTreeMap;

use finlake_lakehouse::FileTask;

/// Files of one folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Group {
    /// Of the span.
    pub files: Vec<FileTask>,
    /// Of later days.
    pub newer: Vec<FileTask>,
}

/// What stands between the day and the file's name; `None` for a file that lies elsewhere.
fn folder(path: &str) -> Option<&str> {
    let (_, rest) = path.split_once("trade_time_day=")?;
    let (_, rest) = rest.split_once('/')?;
    Some(rest.rsplit_once('/').map_or("", |(folder, _)| folder))
}

/// The name of the field that a folder is by.
fn field(folder: &str) -> &str {
    folder.split('=').next().unwrap_or_default()
}

/// The span's files by folder, in the order of their names. One group if folders cannot tell: the
/// files of another engine, or of two partition specs; or if they are not to: `by_folder`.
pub(super) fn groups(files: Vec<FileTask>, newer: Vec<FileTask>, by_folder: bool) -> Vec<Group> {
    let all = || files.iter().chain(&newer).map(|f| folder(&f.path));
    let mut fields = all().map(|f| f.map(field));
    let first = fields.next().flatten();
    if !by_folder || first.is_none() || !fields.all(|f| f == first) {
        return vec![Group { files, newer }];
    }
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for file in files {
        let name = folder(&file.path).unwrap_or_default().to_owned();
        groups.entry(name).or_default().files.push(file);
    }
    for file in newer {
        // Of no use to a folder that the span has nothing in.
        if let Some(group) = groups.get_mut(folder(&file.path).unwrap_or_default()) {
            group.newer.push(file);
        }
    }
    groups.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: &[&str]) -> Vec<FileTask> {
        let file = |p: &&str| FileTask {
            path: (*p).into(),
            rows: 1,
            bytes: 1,
        };
        paths.iter().map(file).collect()
    }

    #[test]
    fn a_folder_is_a_part_on_every_day() {
        let span = files(&[
            "w/trade_time_day=2026-01-05/symbol=B/1.parquet",
            "w/trade_time_day=2026-01-06/symbol=A/1.parquet",
            "w/trade_time_day=2026-01-06/symbol=B/2.parquet",
        ]);
        let newer = files(&[
            "w/trade_time_day=2026-03-05/symbol=B/1.parquet",
            "w/trade_time_day=2026-03-05/symbol=C/1.parquet",
        ]);
        let found = groups(span.clone(), newer.clone(), true);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].files, span[1..2]);
        assert_eq!(
            (&found[1].files[..], &found[1].newer[..]),
            (&[span[0].clone(), span[2].clone()][..], &newer[..1])
        );
    }

    #[test]
    fn what_folders_cannot_tell_is_one_part() {
        for odd in [
            "w/elsewhere/1.parquet",
            "w/trade_time_day=2026-01-06/symbol_bucket=1/1.parquet",
        ] {
            let span = files(&["w/trade_time_day=2026-01-05/symbol=B/1.parquet", odd]);
            assert_eq!(groups(span, Vec::new(), true).len(), 1);
        }
        let by_day = files(&[
            "w/trade_time_day=2026-01-05/1.parquet",
            "w/trade_time_day=2026-01-06/1.parquet",
        ]);
        assert_eq!(groups(by_day, Vec::new(), true).len(), 1);
        assert_eq!(groups(Vec::new(), Vec::new(), true).len(), 1);
    }
}
