use proptest::prelude::*;

use super::*;

fn change(text: &str) -> Change {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn applied(config: Config, changes: &[&str]) -> Config {
    apply(config, &changes.iter().map(|text| change(text)).collect::<Vec<_>>()).unwrap()
}

fn made(changes: &[&str]) -> Config {
    applied(Config::default(), changes)
}

fn base() -> Config {
    Config {
        command: vec!["serve".into()],
        env: vec!["PATH=/bin".into(), "HOME=/root".into()],
        ports: vec!["80/tcp".into()],
        workdir: "/srv".into(),
        ..Config::default()
    }
}

#[test]
fn commands_in_both_forms() {
    assert_eq!(made(&[r#"CMD ["a", "b c"]"#]).command, ["a", "b c"]);
    assert_eq!(made(&["cmd echo  $HOME"]).command, ["/bin/sh", "-c", "echo  $HOME"]);
    assert_eq!(made(&["CMD [ -e /x ] && run"]).command, ["/bin/sh", "-c", "[ -e /x ] && run"]);
    assert_eq!(applied(base(), &["CMD"]).command, [""; 0]);
    assert_eq!(applied(base(), &["CMD []"]).command, [""; 0]);
    let shell = Config { shell: vec!["/bin/bash".into(), "-ec".into()], ..Config::default() };
    assert_eq!(applied(shell, &["ENTRYPOINT go"]).entrypoint, ["/bin/bash", "-ec", "go"]);
}

#[test]
fn an_entrypoint_takes_the_command_away_that_was_not_given_with_it() {
    assert_eq!(applied(base(), &[r#"ENTRYPOINT ["/e"]"#]).command, [""; 0]);
    let both = applied(base(), &[r#"CMD ["x"]"#, r#"ENTRYPOINT ["/e"]"#]);
    assert_eq!((both.command.join(" "), both.entrypoint.join(" ")), ("x".into(), "/e".into()));
}

#[test]
fn environments_are_set_and_used() {
    let env = applied(
        base(),
        &[
            r#"ENV A=b C="d e" F=g\ h HOME=/home"#,
            "ENV OLD form of it",
            "ENV P=$PATH:${HOME}/x Q='$A' R=${NO:-r}${A:+s}",
        ],
    )
    .env;
    let expected = [
        "PATH=/bin",
        "HOME=/home",
        "A=b",
        "C=d e",
        "F=g h",
        "OLD=form of it",
        "P=/bin:/home/x",
        "Q=$A",
        "R=rs",
    ];
    assert_eq!(env, expected);
    // Within one instruction names mean what they meant before it.
    assert_eq!(applied(base(), &["ENV HOME=/new X=$HOME"]).env[1..], ["HOME=/new", "X=/root"]);
}

#[test]
fn labels_ports_volumes() {
    let labels = made(&[r#"LABEL a=b "c d"="e f" g='h "i"'"#]).labels;
    assert_eq!(
        (labels["a"].as_str(), labels["c d"].as_str(), labels["g"].as_str()),
        ("b", "e f", r#"h "i""#)
    );
    let ports = applied(base(), &["EXPOSE 443 53/udp 8000-8002/TCP 80"]).ports;
    assert_eq!(ports, ["443/tcp", "53/udp", "80/tcp", "8000/tcp", "8001/tcp", "8002/tcp"]);
    let volumes = made(&["VOLUME /b /a", r#"VOLUME ["/with space"]"#, "VOLUME /a"]).volumes;
    assert_eq!(volumes, ["/a", "/b", "/with space"]);
}

#[test]
fn single_values() {
    let config = applied(
        base(),
        &[
            "USER app:${HOME:+staff}",
            "WORKDIR data",
            "WORKDIR ../x/./y",
            "STOPSIGNAL SIGRTMIN+3",
            "ONBUILD RUN make",
        ],
    );
    assert_eq!((config.user.as_str(), config.workdir.as_str()), ("app:staff", "/srv/x/y"));
    assert_eq!((config.stop_signal.as_str(), config.on_build.join(",")), ("SIGRTMIN+3", "RUN make".into()));
    assert_eq!(made(&["WORKDIR rel"]).workdir, "/rel");
    assert_eq!(made(&["STOPSIGNAL 9"]).stop_signal, "9");
}

#[test]
fn health_checks() {
    assert_eq!(made(&["HEALTHCHECK NONE"]).healthcheck.unwrap().test, ["NONE"]);
    let check = made(&[
        r#"HEALTHCHECK --interval=1m30s --timeout=500ms --start-period=2h --retries=3 CMD ["/ok", "x"]"#,
    ]);
    let check = check.healthcheck.unwrap();
    assert_eq!(check.test, ["CMD", "/ok", "x"]);
    assert_eq!((check.interval, check.timeout, check.retries), (90_000_000_000, 500_000_000, 3));
    assert_eq!(check.start_period, 7_200_000_000_000);
    assert_eq!(made(&["healthcheck cmd curl -f http://localhost"]).healthcheck.unwrap().test[0], "CMD-SHELL");
}

#[test]
fn nonsense_is_refused_by_name() {
    for text in ["", "RUN make", "FROM x", "COPY a b", "ADD", "MAINTAINER me", "SHELL [\"x\"]"] {
        assert!(matches!(text.parse::<Change>(), Err(BadChange::Instruction(_))), "{text}");
    }
    for text in [
        "ENV",
        "ENV A",
        "ENV =b",
        "LABEL a",
        "LABEL a=b c",
        "ENV A=\"b",
        "EXPOSE 0",
        "EXPOSE 80/x",
        "EXPOSE 9-8",
        "EXPOSE 65536",
        "VOLUME []",
        "VOLUME \"\"",
        "STOPSIGNAL nine",
        "STOPSIGNAL 65",
        "HEALTHCHECK",
        "HEALTHCHECK CMD",
        "HEALTHCHECK --interval=1 CMD x",
        "HEALTHCHECK --x=1s CMD y",
        "HEALTHCHECK --retries=0 CMD x",
        "HEALTHCHECK --timeout=1s NONE",
        "ONBUILD ONBUILD RUN x",
        "ONBUILD FROM x",
        "ENV A=${B",
        "ENV A=${B?x}",
        "USER a\nUSER b",
    ] {
        let error = text.parse::<Change>().unwrap_err();
        assert!(matches!(error, BadChange::Arguments { .. }) && error.remedy().is_some(), "{text}: {error}");
    }
}

#[test]
fn a_change_is_kept_as_it_was_written() {
    let text = r#"ENV A="b  c""#;
    assert_eq!(change(&format!("  {text} ")).to_string(), text);
    let json = serde_json::to_string(&change(text)).unwrap();
    assert_eq!(serde_json::from_str::<Change>(&json).unwrap(), change(text));
    assert!(serde_json::from_str::<Change>("\"RUN x\"").is_err());
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(ENV|LABEL|CMD|EXPOSE|VOLUME|USER|WORKDIR|HEALTHCHECK|ONBUILD|STOPSIGNAL) [ -~é]{0,40}") {
        if let Ok(change) = text.parse::<Change>() {
            prop_assert_eq!(change.to_string().parse::<Change>().unwrap(), change.clone());
            let _ = apply(base(), &[change]);
        }
    }

    #[test]
    fn any_value_can_be_quoted(value in "[^\n\0]{0,30}") {
        let quoted: String = value.chars().flat_map(|c| if matches!(c, '"' | '\\' | '$') { vec!['\\', c] } else { vec![c] }).collect();
        let config = made(&[&format!("ENV A=\"{quoted}\"")]);
        prop_assert_eq!(&config.env[0], &format!("A={value}"));
    }
}
