// SPDX-License-Identifier: Apache-2.0
//! How a file changes, line by line. Pure.

/// Files with more lines are shown as removed and added as a whole.
const LINES_MAX: usize = 500;

/// The lines of both texts in order: `-` in front of those that go, `+` of those that come, a space of those that stay.
#[must_use]
pub fn diff(old: &str, new: &str) -> Vec<(char, String)> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let mut lines = Vec::new();
    let mut say = |sign: char, line: &str| lines.push((sign, line.to_owned()));
    if old.len() > LINES_MAX || new.len() > LINES_MAX {
        old.iter().for_each(|line| say('-', line));
        new.iter().for_each(|line| say('+', line));
        return lines;
    }
    let common = table(&old, &new);
    let at = |i: usize, j: usize| common.get(i).and_then(|row| row.get(j)).copied().unwrap_or_default();
    let (mut i, mut j) = (0, 0);
    loop {
        match (old.get(i), new.get(j)) {
            (Some(a), Some(b)) if a == b => {
                say(' ', a);
                (i, j) = (i + 1, j + 1);
            }
            (Some(a), None) => {
                say('-', a);
                i += 1;
            }
            (Some(a), Some(_)) if at(i + 1, j) >= at(i, j + 1) => {
                say('-', a);
                i += 1;
            }
            (_, Some(b)) => {
                say('+', b);
                j += 1;
            }
            (None, None) => return lines,
        }
    }
}

/// How many lines both have in common from each pair of lines on.
fn table(old: &[&str], new: &[&str]) -> Vec<Vec<u32>> {
    let mut rows = vec![vec![0; new.len() + 1]];
    for a in old.iter().rev() {
        let below: &[u32] = rows.last().map_or(&[], Vec::as_slice);
        let mut row = vec![0];
        for (j, b) in new.iter().enumerate().rev() {
            let of = |row: &[u32], at: usize| row.get(at).copied().unwrap_or_default();
            let right = row.last().copied().unwrap_or_default();
            row.push(if a == b { of(below, j + 1) + 1 } else { of(below, j).max(right) });
        }
        row.reverse();
        rows.push(row);
    }
    rows.reverse();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(old: &str, new: &str) -> String {
        diff(old, new).into_iter().map(|(sign, line)| format!("{sign}{line}\n")).collect()
    }

    #[test]
    fn what_stays_goes_and_comes() {
        for (old, new, expected) in [
            ("", "", ""),
            ("", "a\nb\n", "+a\n+b\n"),
            ("a\nb\n", "", "-a\n-b\n"),
            ("a\nb\nc\n", "a\nc\n", " a\n-b\n c\n"),
            ("a\nb\nc\n", "a\nx\nc\nd\n", " a\n-b\n+x\n c\n+d\n"),
            ("a\n", "a\n", " a\n"),
        ] {
            assert_eq!(shown(old, new), expected, "{old:?} {new:?}");
        }
        let long = "x\n".repeat(LINES_MAX + 1);
        assert_eq!(diff(&long, "y\n").len(), LINES_MAX + 2);
    }

    proptest::proptest! {
        #[test]
        fn both_texts_can_be_read_from_it(old in "([ab]\n){0,9}", new in "([abc]\n){0,9}") {
            let lines = diff(&old, &new);
            let without = |sign: char| lines.iter().filter(|(s, _)| *s != sign).map(|(_, l)| format!("{l}\n")).collect::<String>();
            proptest::prop_assert_eq!(without('+'), old);
            proptest::prop_assert_eq!(without('-'), new);
        }
    }
}
