// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;

fn environment(name: &str) -> Option<String> {
    match name {
        "HOME_OF" => Some("/home/me".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

fn pairs(text: &str) -> Result<Vec<(String, String)>, DotenvError> {
    let variables = parse(text, &environment)?;
    Ok(variables.into_iter().map(|(k, v)| (k, v.to_string())).collect())
}

#[test]
fn values_as_docker_compose_reads_them() {
    for (text, value) in [
        ("A=b", "b"),
        ("A=", ""),
        ("  A = b  ", "b"),
        ("export A=b", "b"),
        ("export\tA=b", "b"),
        ("A=b c", "b c"),
        ("A=b # comment", "b"),
        ("A=b#no-comment", "b#no-comment"),
        ("A=#comment", ""),
        ("A= # comment", ""),
        ("A=b\r\n", "b"),
        ("A=b=c==", "b=c=="),
        ("A='b # c'", "b # c"),
        ("A='$HOME_OF ${X} \\n'", "$HOME_OF ${X} \\n"),
        ("A='it\\'s'", "it's"),
        ("A='one\ntwo'", "one\ntwo"),
        ("A=\"one\\ntwo\\t\\\"q\\\" \\\\ \\$x \\z\"", "one\ntwo\t\"q\" \\ $x \\z"),
        ("A=\"-----BEGIN-----\nabc=\n-----END-----\n\" # key", "-----BEGIN-----\nabc=\n-----END-----\n"),
        ("A=\"\"", ""),
        ("A=$HOME_OF/x", "/home/me/x"),
        ("A=\"${HOME_OF}/x\"", "/home/me/x"),
        ("A=${NONE:-d}${EMPTY:-e}${EMPTY-f}", "de"),
        ("A=${NONE-${ALSO:-deep}}", "deep"),
        ("A=${HOME_OF:+set}${NONE:+unset}", "set"),
        ("A=${HOME_OF:?must}", "/home/me"),
        ("A=pa$$word", "pa$word"),
        ("A=5$ and 6$", "5$ and 6$"),
        ("A=C:\\temp\\new", "C:\\temp\\new"),
        ("A=größe", "größe"),
    ] {
        assert_eq!(pairs(text).unwrap(), [("A".to_owned(), value.to_owned())], "{text}");
    }
}

#[test]
fn files() {
    let text =
        "\u{feff}# first\n\nA=1\n  # indented\nB=${A}2\nA=3\nHOME_OF\nC=\"x\ny\"\nexport D\t=4\nexport=5\n";
    let found = pairs(text).unwrap();
    let expected =
        [("A", "3"), ("B", "12"), ("C", "x\ny"), ("D", "4"), ("HOME_OF", "/home/me"), ("export", "5")];
    assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    assert!(pairs("").unwrap().is_empty() && pairs("#\n \n").unwrap().is_empty());
}

#[test]
fn wrong_lines_are_told_by_number() {
    for (text, line, part) in [
        ("A=1\n=2", 2, "name"),
        ("A=1\n\n1B=2", 3, "name"),
        ("A-B=1", 1, "NAME=VALUE"),
        ("A: 1", 1, "NAME=VALUE"),
        ("A='x\ny", 1, "never closed"),
        ("A=\"x\\\"", 1, "never closed"),
        ("A='x\\'", 1, "never closed"),
        ("A='x' y", 1, "follows"),
        ("A='x\ny' z", 2, "follows"),
        ("NOT_SET", 1, "environment"),
        ("A=1\nB=$NOT_SET", 2, "not set"),
        ("B=${NOT_SET:?say}", 1, "not set"),
        ("B=${EMPTY:?say}", 1, "not set"),
        ("B=${A", 1, "never closed"),
        ("B=${}", 1, "names no variable"),
        ("B=${A:}", 1, "names no variable"),
        ("B=${EMPTY!x}", 1, "not one of"),
    ] {
        let error = pairs(text).unwrap_err();
        assert!(error.line == line && error.what.contains(part), "{text}: {error}");
    }
    let deep = format!("A={}x{}", "${N:-".repeat(20), "}".repeat(20));
    assert!(pairs(&deep).unwrap_err().what.contains("deeply"));
}

#[test]
fn p02_no_error_carries_a_part_of_a_line() {
    for text in
        ["s3cret", "s3cret!", "A='s3cret", "A='x's3cret", "A=$s3cret", "A=${s3cret:?s3cret}", "9s3cret=1"]
    {
        let error = pairs(text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{text}: {error}");
    }
}

proptest! {
    #[test]
    fn nothing_panics_and_quoting_survives(text in ".*", value in "[^'\\\\\r]*") {
        let _ = parse(&text, &environment);
        let quoted = format!("A='{value}'");
        prop_assert_eq!(pairs(&quoted).unwrap(), [("A".to_owned(), value)]);
    }
}
