// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;
use proptest::prelude::*;

/// The tree as RFC 6962 defines it, in the shortest words.
fn mth(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty(),
        [one] => *one,
        many => {
            let middle = many.len().next_power_of_two() / 2;
            node(&mth(&many[..middle]), &mth(&many[middle..]))
        }
    }
}

fn leaves(count: u64) -> Vec<Hash> {
    (0..count).map(|n| leaf(&n.to_be_bytes())).collect()
}

fn at(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

fn hashes(nodes: &[Parts], all: &[Hash]) -> Vec<Hash> {
    let subtree = |s: &Subtree| mth(&all[at(s.index << s.height)..at((s.index + 1) << s.height)]);
    nodes.iter().map(|parts| join(&parts.iter().map(subtree).collect::<Vec<_>>())).collect()
}

/// Roots of the well-known test tree of RFC 6962's reference implementation.
#[test]
fn roots_are_those_of_the_published_tree() {
    let inputs =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    let mut frontier = Frontier::default();
    assert_eq!(
        frontier.root().to_string(),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
    let mut roots = Vec::new();
    for input in inputs {
        frontier.push(leaf(&hex::decode(input).unwrap()));
        roots.push(frontier.root().to_string());
    }
    assert_eq!(roots[0], "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
    assert_eq!(roots[1], "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125");
    assert_eq!(roots[7], "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
}

#[test]
fn every_proof_of_small_trees_holds_and_no_changed_one() {
    let all = leaves(40);
    for size in 1..=40 {
        let root = mth(&all[..at(size)]);
        for index in 0..size {
            let path = hashes(&inclusion_nodes(index, size), &all);
            check_inclusion(index, size, &all[at(index)], &path, &root).unwrap();
            assert!(check_inclusion(index, size, &empty(), &path, &root).is_err());
            assert!(check_inclusion(size, size, &all[at(index)], &path, &root).is_err());
        }
        for first in 1..size {
            let old = mth(&all[..at(first)]);
            let proof = hashes(&consistency_nodes(first, size), &all);
            check_consistency((first, &old), (size, &root), &proof).unwrap();
            for n in 0..proof.len() {
                let mut changed = proof.clone();
                changed[n] = empty();
                assert!(check_consistency((first, &old), (size, &root), &changed).is_err());
            }
            let more = [proof.as_slice(), &[root]].concat();
            let less = &proof[..proof.len() - 1];
            for wrong in [more.as_slice(), less] {
                assert!(check_consistency((first, &old), (size, &root), wrong).is_err());
            }
            assert!(check_consistency((first, &empty()), (size, &root), &proof).is_err());
            assert!(check_consistency((first, &old), (size, &empty()), &proof).is_err());
        }
    }
}

#[test]
fn the_edge_comes_from_the_last_leafs_proof() {
    let all = leaves(70);
    let mut grown = Frontier::default();
    for size in 1..=70 {
        grown.push(all[at(size - 1)]);
        let path = hashes(&inclusion_nodes(size - 1, size), &all);
        let taken = Frontier::from_last_leaf(size, all[at(size - 1)], &path).unwrap();
        assert_eq!(taken, grown);
        assert_eq!(taken.root(), mth(&all[..at(size)]));
        let text = serde_json::to_string(&taken).unwrap();
        assert_eq!(serde_json::from_str::<Frontier>(&text).unwrap(), taken);
    }
    assert!(Frontier::from_last_leaf(0, all[0], &[]).is_err());
    assert!(Frontier::from_last_leaf(3, all[0], &[]).is_err());
    assert!(serde_json::from_str::<Frontier>(r#"{"size":3,"hashes":[]}"#).is_err());
}

#[test]
fn equal_and_empty_trees() {
    let root = mth(&leaves(5));
    check_consistency((5, &root), (5, &root), &[]).unwrap();
    check_consistency((0, &empty()), (5, &root), &[]).unwrap();
    assert!(check_consistency((5, &root), (5, &empty()), &[]).is_err());
    assert!(check_consistency((5, &root), (5, &root), &[root]).is_err());
    assert!(check_consistency((0, &root), (5, &root), &[]).is_err());
    assert!(check_consistency((6, &root), (5, &root), &[]).is_err());
}

proptest! {
    #[test]
    fn any_hashes_are_survived(first in any::<u64>(), second in any::<u64>(), count in 0usize..70) {
        let proof = vec![empty(); count];
        let root = empty();
        let _ = check_consistency((first, &root), (second, &root), &proof);
        let _ = check_inclusion(first, second, &root, &proof, &root);
    }

    #[test]
    fn nodes_of_large_trees_fit_their_checks(first in 1u64..1_000_000, more in 1u64..1_000_000) {
        let second = first + more;
        // The hashes are made up, so the roots are wrong; the number of hashes must be right.
        let proof = vec![empty(); consistency_nodes(first, second).len()];
        prop_assert_eq!(check_consistency((first, &empty()), (second, &empty()), &proof), Err(ProofError::Root));
        let path = vec![empty(); inclusion_nodes(first, second).len()];
        prop_assert!(root_of_inclusion(first, second, &empty(), &path).is_ok());
    }
}
