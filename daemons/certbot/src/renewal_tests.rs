// SPDX-License-Identifier: Apache-2.0

use super::*;
use proptest::prelude::*;

const NOW: i64 = 1_800_000_000;

fn known(age: i64, life: i64) -> Known {
    let not_before = NOW - age * DAY;
    let validity = Some(Validity { not_before, not_after: not_before + life * DAY });
    Known { validity, fits: true, suggested: None, spread: 7 }
}

#[test]
fn by_age() {
    let cases = [
        (known(0, 90), 10, Decision::At(NOW + 80 * DAY)),
        (known(79, 90), 10, Decision::At(NOW + DAY)),
        (known(80, 90), 10, Decision::Renew(Reason::Age)),
        (known(91, 90), 10, Decision::Renew(Reason::Age)),
        // A third of the life of a short one.
        (known(0, 6), 10, Decision::At(NOW + 4 * DAY)),
        (known(4, 6), 10, Decision::Renew(Reason::Age)),
        // From the future: the clock was set back. It is good, so nothing is done.
        (known(-30, 90), 10, Decision::At(NOW + 110 * DAY)),
    ];
    for (known, days, expected) in cases {
        assert_eq!(decide(NOW, &known, days, false), expected, "{known:?}");
    }
    assert_eq!(decide(NOW, &known(0, 90), 10, true), Decision::Renew(Reason::Forced));
    let none = Known { validity: None, ..known(0, 90) };
    assert_eq!(decide(NOW, &none, 10, false), Decision::Renew(Reason::Missing));
    let other = Known { fits: false, ..known(0, 90) };
    assert_eq!(decide(NOW, &other, 10, false), Decision::Renew(Reason::Changed));
}

#[test]
fn by_what_the_authority_suggests() {
    let with = |start: i64, end: i64| {
        let suggested = Some(Suggested { start: NOW + start, end: NOW + end, ask_again: 0 });
        Known { suggested, ..known(0, 90) }
    };
    assert_eq!(decide(NOW, &with(-20, -10), 10, false), Decision::Renew(Reason::Suggested));
    assert_eq!(decide(NOW, &with(10, 20), 10, false), Decision::At(NOW + 17));
    // Later than by age, but never too late: a tenth of its life, or its margin.
    assert_eq!(decide(NOW, &with(89 * DAY, 90 * DAY - 1), 10, false), Decision::At(NOW + 81 * DAY));
    // Nonsense is ignored.
    for (start, end) in [(20, 10), (90 * DAY, 91 * DAY)] {
        assert_eq!(decide(NOW, &with(start, end), 10, false), Decision::At(NOW + 80 * DAY));
    }
}

#[test]
fn p24_a_clock_that_jumped_neither_hammers_nor_waits_for_ever() {
    let failed = Failures::default().another(NOW, None);
    assert_eq!(failed.until(NOW, false), Some(NOW + 900));
    assert_eq!(failed.until(NOW + 900, false), None);
    assert_eq!(failed.until(NOW, true), None);
    // Set back by a year: it is tried at once, and waits one pause after that, not the year and not for ever.
    let then = NOW - 365 * DAY;
    let told = Failures::default().another(NOW, Some(NOW + 7200));
    for before in [failed, told] {
        assert_eq!(before.until(then, false), None);
        let again = before.another(then, None);
        assert_eq!(again.until(then + 1799, false), Some(then + 1800), "its second failure");
        assert_eq!(again.until(then + 1800, false), None);
    }
    let many = Failures { count: 60, ..failed };
    assert_eq!(many.until(NOW, false), Some(NOW + DAY));
    let told = Failures::default().another(NOW, Some(NOW + 7200));
    assert_eq!(told.until(NOW, true), Some(NOW + 7200));
    let absurd = Failures::default().another(NOW, Some(i64::MAX));
    assert_eq!(absurd.until(NOW, true), Some(NOW + 7 * DAY));
    assert_eq!(absurd.until(NOW + 7 * DAY - 1, true), Some(NOW + 7 * DAY), "the same moment at each look");
    assert!(is_suggestion_old(NOW, None));
    let suggestion = |ask_again| Suggested { start: 0, end: 1, ask_again };
    assert!(!is_suggestion_old(NOW, Some(&suggestion(NOW + 60))));
    assert!(is_suggestion_old(NOW - 365 * DAY, Some(&suggestion(NOW + 60))));
}

proptest! {
    #[test]
    fn never_panics_and_always_renews_in_the_end(
        nb in any::<i32>(), life in 0..4_000_000_i64, spread in any::<u64>(),
        window in prop::option::of((any::<i32>(), any::<i32>())), days in 0..400_u32,
    ) {
        let validity = Validity { not_before: nb.into(), not_after: i64::from(nb) + life };
        let suggested = window.map(|(s, e)| Suggested { start: s.into(), end: e.into(), ask_again: 0 });
        let known = Known { validity: Some(validity), fits: true, suggested, spread };
        prop_assert!(matches!(decide(validity.not_after, &known, days, false), Decision::Renew(_)));
        if let Decision::At(at) = decide(validity.not_before, &known, days, false) {
            prop_assert!(at <= validity.not_after && at > validity.not_before);
            prop_assert!(matches!(decide(at, &known, days, false), Decision::Renew(_)));
        }
    }
}

/// A thousand certificates of one moment are not renewed at one moment.
#[test]
fn renewals_are_spread_over_the_window() {
    let suggested = Some(Suggested { start: NOW, end: NOW + DAY, ask_again: 0 });
    let at = |n: u64| match decide(
        NOW - 1,
        &Known { suggested, spread: n.wrapping_mul(0x9e37_79b9_7f4a_7c15), ..known(0, 90) },
        10,
        false,
    ) {
        Decision::At(at) => at,
        Decision::Renew(reason) => panic!("{reason:?}"),
    };
    let hours: std::collections::BTreeSet<i64> = (0..1000).map(|n| (at(n) - NOW) / 3600).collect();
    assert_eq!(hours.len(), 24);
}
