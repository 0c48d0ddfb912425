//! Other engines on our tables: pyiceberg, DuckDB, Spark (tests/readers/*.py).

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{java, prepared, root, skip};

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    Pyiceberg,
    Duckdb,
    Spark,
}

impl Reader {
    pub const ALL: [Self; 3] = [Self::Pyiceberg, Self::Duckdb, Self::Spark];

    fn script(self) -> &'static str {
        match self {
            Self::Pyiceberg => "read_pyiceberg.py",
            Self::Duckdb => "read_duckdb.py",
            Self::Spark => "read_spark.py",
        }
    }
}

/// What is to be read.
#[derive(Debug, Clone, Default)]
pub struct Read<'a> {
    /// `namespace.table`; none: the three tables.
    pub tables: Vec<&'a str>,
    /// Also filter by this symbol.
    pub symbol: Option<&'a str>,
    /// Also read older snapshots.
    pub snapshots: Vec<(&'a str, i64)>,
    /// Give the rows too.
    pub rows: bool,
}

/// The Python environment the engines are installed in.
pub struct Readers {
    python: std::path::PathBuf,
    spark_jars: std::path::PathBuf,
}

impl Readers {
    /// `None`, after a loud word, where they are not installed.
    pub fn available() -> Option<Self> {
        let python = prepared("TEST_PYTHON", "python/bin/python");
        let spark_jars = prepared("TEST_SPARK_JARS", "spark-jars");
        match (python, spark_jars) {
            (Some(python), Some(spark_jars)) => Some(Self { python, spark_jars }),
            _ => {
                skip(
                    "pyiceberg, DuckDB or Spark",
                    "run ./test, or scripts/test-env.sh python spark",
                );
                None
            }
        }
    }

    /// Runs one engine over the tables of a SQLite catalog (named `finlake`) and gives its report:
    /// per table counts and hashes, see tests/readers/common.py.
    pub fn read(&self, reader: Reader, catalog: &Path, warehouse: &str, what: &Read<'_>) -> Value {
        let mut command = self.script(reader.script());
        command.arg(catalog).arg(warehouse);
        for table in &what.tables {
            command.args(["--table", table]);
        }
        if let Some(symbol) = what.symbol {
            command.args(["--symbol", symbol]);
        }
        for (table, id) in &what.snapshots {
            command.arg("--snapshot").arg(format!("{table}={id}"));
        }
        if what.rows {
            command.arg("--rows");
        }
        let text = succeed(command);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{reader:?}: {e}:\n{text}"))
    }

    /// Questions about the past, answered by DuckDB alone; see tests/readers/asof_duckdb.py.
    pub fn as_of(&self, asked: &Value) -> Value {
        let mut command = self.script("asof_duckdb.py");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let mut stdin = child.stdin.take().expect("piped");
        serde_json::to_writer(&mut stdin, asked).expect("python reads");
        drop(stdin);
        let done = child.wait_with_output().expect("python ends");
        assert!(done.status.success(), "DuckDB: see its error above");
        serde_json::from_slice(&done.stdout).expect("JSON")
    }

    /// A small table made by pyiceberg, to test the readers with.
    pub fn make_sample(&self, catalog: &Path, warehouse: &str) {
        let mut command = self.script("make_sample.py");
        command.arg(catalog).arg(warehouse);
        succeed(command);
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(&self.python);
        command
            .arg(root().join("tests/readers").join(name))
            .env("TEST_SPARK_JARS", &self.spark_jars)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("TZ", "UTC")
            .stdin(Stdio::null());
        // Spark's launcher looks for Java in JAVA_HOME first.
        if let Some(home) = java().ancestors().nth(2).filter(|h| h.is_absolute()) {
            command.env("JAVA_HOME", home);
        }
        command
    }
}

fn succeed(mut command: Command) -> String {
    let done = command.output().expect("python starts");
    assert!(
        done.status.success(),
        "{command:?}:\n{}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8_lossy(&done.stdout).into_owned()
}
