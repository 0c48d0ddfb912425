use clap::CommandFactory;

use super::*;

fn parse(args: &str) -> Result<Cli, clap::Error> {
    Cli::of(
        std::iter::once("finlake")
            .chain(args.split_whitespace())
            .map(Into::into),
    )
}

#[test]
fn every_set_counts_wherever_it_stands() {
    let cli = parse("--set a.b=1 --set=c.d=x=y reconcile --set e.f=3 --quiet --set a.b=4").unwrap();
    let pairs = [("a.b", "1"), ("c.d", "x=y"), ("e.f", "3"), ("a.b", "4")];
    assert_eq!(
        cli.global.set,
        pairs.map(|(k, v)| (k.to_owned(), v.to_owned()))
    );
    let cli = parse("reconcile").unwrap();
    assert!(cli.global.set.is_empty());
    assert!(parse("--set nothing reconcile").is_err());
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

/// Every command a user can run, with its path.
fn leaves<'a>(command: &'a clap::Command, path: &str, into: &mut Vec<(String, &'a clap::Command)>) {
    for sub in command.get_subcommands() {
        let path = format!("{path} {}", sub.get_name());
        if sub.get_subcommands().next().is_none() {
            into.push((path.clone(), sub));
        }
        leaves(sub, &path, into);
    }
}

#[test]
fn every_command_and_every_argument_says_what_it_does() {
    let mut command = Cli::command();
    command.build();
    let mut all = Vec::new();
    leaves(&command, "finlake", &mut all);
    assert!(all.len() > 15);
    for (path, sub) in all {
        assert!(sub.get_about().is_some(), "{path}");
        for arg in sub.get_arguments() {
            assert!(arg.get_help().is_some(), "{path} {}", arg.get_id());
        }
    }
}

#[test]
fn docs_name_every_command() {
    let doc = include_str!("../../docs/cli.md");
    let mut all = Vec::new();
    let mut command = Cli::command();
    command.build();
    leaves(&command, "finlake", &mut all);
    for (path, _) in all {
        assert!(
            doc.contains(&format!("`{path}")),
            "docs/cli.md does not name `{path}`"
        );
    }
}

#[test]
fn options_of_every_command_may_stand_anywhere() {
    for args in ["--data d tables -o json", "tables --data d --output json"] {
        let cli = parse(args).unwrap();
        assert_eq!(cli.global.data.as_deref(), Some(std::path::Path::new("d")));
        assert_eq!(cli.global.format(), Format::Json);
    }
}

#[test]
fn flags_that_stand_for_keys_become_overrides() {
    let cli = parse("run --bootstrap h:1 --set stream.threads=2").unwrap();
    let overrides = cli.global.inputs().overrides;
    assert_eq!(overrides[0].0, "stream.threads");
    assert_eq!(
        overrides[1],
        (
            "kafka.bootstrap_servers".into(),
            "h:1".into(),
            "--bootstrap".into()
        )
    );
    assert!(parse("run --set threads").is_err());
}

#[test]
fn as_of_times_are_instants() {
    let cli =
        parse("query q --as-of-system 1970-01-02 --as-of-valid 1970-01-01T00:00:01Z").unwrap();
    let Command::Query(args) = cli.command else {
        panic!("{cli:?}")
    };
    assert_eq!(args.as_of_system, Some(86_400_000_000));
    assert_eq!(args.as_of_valid, Some(1_000_000));
    let wrong = parse("query q --as-of-system soon")
        .unwrap_err()
        .to_string();
    assert!(wrong.contains("2026-11-22T12:00:00Z"), "{wrong}");
    assert!(
        parse("query q --running").is_err(),
        "running bars without a valid time mean nothing"
    );
}

#[test]
fn roles_default_to_both() {
    let Command::Run(args) = parse("run").unwrap().command else {
        panic!()
    };
    assert_eq!(args.roles, [Role::Stream, Role::Sink]);
    let Command::Run(args) = parse("run --roles sink").unwrap().command else {
        panic!()
    };
    assert_eq!(args.roles, [Role::Sink]);
    assert!(parse("run --roles drain").is_err());
}

#[test]
fn dead_letters_are_named_by_partition_and_offset() {
    let Command::Dlq(DlqCommand::Show(args)) = parse("dlq show 2:17").unwrap().command else {
        panic!()
    };
    assert_eq!(args.at, (2, 17));
    for bad in [
        "dlq show 2",
        "dlq show -1:2",
        "dlq show a:b",
        "dlq redrive --from 3",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

fn replay(args: &str) -> Result<ReplayArgs, String> {
    match parse(&format!("replay {args}")) {
        Ok(Cli {
            command: Command::Replay(args),
            ..
        }) => Ok(args),
        Ok(other) => panic!("{other:?}"),
        Err(e) => Err(e.to_string()),
    }
}

#[test]
fn keys_of_a_replay_are_bars_or_instruments() {
    use crate::replay::Wanted;
    let args = replay("--all --key x:A --key x:A:1m:1970-01-02 --key x:A:1m:60000000").unwrap();
    let (source, symbol) = ("x".to_owned(), "A".to_owned());
    let bar = |start| Wanted::Bar {
        source: source.clone(),
        symbol: symbol.clone(),
        interval: "1m".into(),
        start,
    };
    let (day, minute) = (bar(86_400_000_000), bar(60_000_000));
    assert_eq!(
        args.keys,
        [Wanted::Instrument { source, symbol }, day, minute]
    );
    for bad in ["x", "x:", "x:A:1m", "x:A:1970-01-02", "x:A:1m:soon"] {
        let wrong = replay(&format!("--all --key {bad}")).unwrap_err();
        assert!(wrong.contains("SOURCE:SYMBOL"), "{bad}: {wrong}");
    }
    assert!(replay("--all --verify --key x:A").is_err());
}

#[test]
fn corrections_are_overruled_only_where_something_is_sent() {
    let range = "--from-timestamp 2026-01-01";
    let args = replay(&format!("{range} --apply --over-corrections")).unwrap();
    assert!(args.over_corrections);
    assert!(replay(&format!("{range} --over-corrections")).is_err());
    // The whole ledger takes corrections in.
    assert!(replay("--all --apply --over-corrections").is_err());
    assert_eq!(
        replay("--all --to 1970-01-02").unwrap().to,
        Some(86_400_000_000)
    );
}

/// What users read. A changed text shows in review; `INSTA_UPDATE=always` takes it over.
#[test]
fn help_texts() {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut text = format!("{}\n", command.clone().render_long_help());
    let mut all = Vec::new();
    leaves(&command, "finlake", &mut all);
    for (path, sub) in all {
        // The options of every command stand in the first text.
        let sub = sub.clone().mut_args(|arg| match arg.get_help_heading() {
            Some("Everywhere") => arg.hide(true),
            _ => arg,
        });
        let help = sub.clone().render_long_help();
        text.push_str(&format!("──── {path}\n\n{help}\n"));
    }
    insta::assert_snapshot!("help", text);
}
