// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;

fn all_answered() -> Draft {
    let example: String = render(&Draft::default(), "# x")
        .lines()
        .map(|line| format!("{}\n", line.strip_prefix('#').filter(|l| !l.starts_with(' ')).unwrap_or(line)))
        .collect();
    parse(&example).unwrap()
}

#[test]
fn the_template_names_every_key_and_its_examples_are_of_the_right_kind() {
    let full = table(&all_answered());
    for (section, key, ..) in KEYS {
        assert!(value(&full, section, key).is_some(), "{section}.{key}");
    }
    // The other way round: a key that the template forgets would be lost when answers are saved.
    let count = |table: &Table| {
        fn leaves(value: &Value) -> usize {
            value.as_table().map_or(1, |t| t.values().map(leaves).sum())
        }
        table.values().map(leaves).sum::<usize>()
    };
    assert_eq!(count(&full), KEYS.len());
    assert_eq!(parse(&render(&Draft::default(), "# x")).unwrap(), Draft::default());
}

#[test]
fn what_is_rendered_is_read_again() {
    let full = all_answered();
    assert_eq!(parse(&render(&full, "# x")).unwrap(), full);
    let odd = Draft { base_domain: Some("a\"\n\\b\u{7f}".into()), ..Draft::default() };
    assert_eq!(parse(&render(&odd, "#")).unwrap(), odd);
}

#[test]
fn unknown_keys_are_errors_with_a_line() {
    let error = parse("base_domain = \"a.b\"\n[ports]\nkmss = 1\n").unwrap_err();
    for part in ["line 3", "kmss", "registration"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert!(parse("[ports]\nkms = 70000").unwrap_err().contains("70000"));
    assert!(parse("token = 'x'").is_err(), "no secret is ever in the file");
    assert!(parse(&" ".repeat(FILE_MAX + 1)).unwrap_err().contains("larger"));
}

#[test]
fn the_first_answer_counts() {
    let first = parse("address = 'a'\n[ports]\nkms = 1").unwrap();
    let second = parse("address = 'b'\nbase_domain = 'x'\n[ports]\nkms = 2\ningress = 3").unwrap();
    let both = first.or(second);
    assert_eq!(both, parse("address = 'a'\nbase_domain = 'x'\n[ports]\nkms = 1\ningress = 3").unwrap());
}

#[test]
fn the_manual_names_every_key() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../man/dstack-setup.7");
    let page = std::fs::read_to_string(page).unwrap().replace("\\-", "-");
    for (section, key, ..) in KEYS {
        let name = if section.is_empty() { (*key).to_owned() } else { format!("{section}.{key}") };
        assert!(page.lines().any(|line| line.starts_with(&format!("{name}\t"))), "{name}");
    }
}
