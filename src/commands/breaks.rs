//! `finlake breaks`: what is known to be wrong, and why.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use finlake_schemas::registry::Subject;
use finlake_schemas::{Break, BreakStatus, Codec, keys};

use super::{DIFFERS, SAME, printer};
use crate::audit::{Known, Publisher};
use crate::cli::{BreaksCommand, BreaksListArgs, Global};
use crate::config::Config;
use crate::output::{Kind, format_instant, remark};
use crate::parts;

/// Runs the command. Exit code 1 if a break is open.
///
/// # Errors
/// Kafka or the registry does not answer, no such break.
pub fn run(global: &Global, config: &Config, command: &BreaksCommand) -> Result<u8> {
    let mut registry = parts::registry(config);
    registry.register = false;
    let codec = Codec::connect(registry, &Subject::all())
        .with_context(|| format!("schema registry {}", config.registry.url))?;
    match command {
        BreaksCommand::List(args) => list(global, config, &codec, args),
        BreaksCommand::Explain { id, why } => {
            explain(global, config, &codec, id, why)?;
            Ok(SAME)
        }
    }
}

fn text(id: [u8; 16]) -> String {
    let mut out = Vec::new();
    keys::breaks(id, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

fn list(global: &Global, config: &Config, codec: &Codec, args: &BreaksListArgs) -> Result<u8> {
    let known = Known::read(config, codec)?;
    let mut breaks: Vec<&Break> = known
        .values()
        .filter(|b| args.all || b.status != BreakStatus::Resolved)
        .filter(|b| args.layer.as_ref().is_none_or(|l| *l == b.layer))
        .collect();
    breaks.sort_by_key(|b| (std::cmp::Reverse(b.system_time), b.break_id));
    let kind = Kind::Text;
    let columns = [
        ("break", kind),
        ("status", kind),
        ("kind", kind),
        ("severity", kind),
        ("layer", kind),
        ("key", kind),
        ("cause", kind),
        ("since", kind),
        ("found_by", kind),
        ("detail", kind),
    ];
    let mut out = printer(global, &columns)?;
    let mut open = 0;
    for b in breaks {
        open += usize::from(b.status == BreakStatus::Opened);
        out.row(vec![
            Some(text(b.break_id)),
            Some(b.status.as_str().to_owned()),
            Some(b.kind.as_str().to_owned()),
            Some(b.severity.as_str().to_owned()),
            Some(b.layer.clone()),
            Some(b.key.clone()),
            Some(b.cause.clone()),
            Some(format_instant(b.system_time)),
            Some(b.found_by.clone()),
            Some(b.detail.clone()),
        ])?;
    }
    out.finish(&[("open", open.into())])?;
    remark(global.quiet, &format!("{open} open"));
    Ok(if open > 0 { DIFFERS } else { SAME })
}

fn explain(global: &Global, config: &Config, codec: &Codec, id: &str, why: &str) -> Result<()> {
    let published = Publisher::new(config).publish(codec, |known| {
        let mut named = known.values().filter(|b| text(b.break_id).starts_with(id));
        let (Some(found), None) = (named.next(), named.next()) else {
            bail!("`{id}` does not name one break; `finlake breaks list` shows the ids");
        };
        if found.status == BreakStatus::Resolved {
            bail!("that break is resolved already");
        }
        if found.status == BreakStatus::Explained && found.detail == why {
            return Ok(Vec::new());
        }
        Ok(vec![explained(found, why, now())])
    })?;
    for next in &published.written {
        remark(global.quiet, &format!("{} explained", text(next.break_id)));
    }
    if published.written.is_empty() {
        remark(global.quiet, "explained so already");
    }
    Ok(())
}

/// The version that explains a break. `now` in µs.
fn explained(open: &Break, why: &str, now: i64) -> Break {
    Break {
        status: BreakStatus::Explained,
        system_time: now.max(open.system_time + 1),
        detail: why.to_owned(),
        ..open.clone()
    }
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as i64)
}
