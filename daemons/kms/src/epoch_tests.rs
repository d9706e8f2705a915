// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
use super::*;
use proptest::prelude::*;

fn token(n: u8) -> [u8; 16] {
    [n; 16]
}

/// Begins, keeps the record, and gives the epoch to write.
fn begin(record: &mut Record, disk: Option<Epoch>, n: u8) -> Result<Epoch, Refusal> {
    let (next, pending, _) = record.begin(disk, false, &token(n))?;
    *record = next;
    Ok(pending)
}

fn commit(record: &mut Record, epoch: Epoch) -> Result<(), Refusal> {
    if let Some(next) = record.commit(epoch)? {
        *record = next;
    }
    Ok(())
}

/// An instance that has gone on once; its record and what its disk says.
fn started() -> (Record, Epoch) {
    let mut record = Record::default();
    let first = begin(&mut record, None, 1).unwrap();
    commit(&mut record, first).unwrap();
    (record, first)
}

#[test]
fn t13_each_boot_counts_one_up() {
    let (mut record, mut disk) = started();
    assert_eq!(disk.number(), 1);
    for n in 2..10 {
        disk = begin(&mut record, Some(disk), n).unwrap();
        commit(&mut record, disk).unwrap();
        assert_eq!((disk.number(), record.committed, record.pending), (u64::from(n), Some(disk), None));
    }
}

#[test]
fn t13_a_kill_at_any_step_ends_in_a_boot_that_goes_on() {
    for before in [None, Some(())] {
        let (start, disk) = match before {
            None => (Record::default(), None),
            Some(()) => started().map_disk(),
        };
        // After begin, before the write; any number of times.
        let mut record = start.clone();
        (2..5).for_each(|n| assert!(begin(&mut record, disk, n).is_ok()));
        let last = begin(&mut record, disk, 5).unwrap();
        commit(&mut record, last).unwrap();
        // After the write, before the commit; any number of times.
        let (mut record, mut disk) = (start.clone(), disk);
        (2..5).for_each(|n| disk = Some(begin(&mut record, disk, n).unwrap()));
        let last = begin(&mut record, disk, 5).unwrap();
        commit(&mut record, last).unwrap();
        // After the commit; its answer was lost.
        commit(&mut record, last).unwrap();
        let next = begin(&mut record, Some(last), 6).unwrap();
        commit(&mut record, next).unwrap();
    }
}

trait MapDisk {
    fn map_disk(self) -> (Record, Option<Epoch>);
}

impl MapDisk for (Record, Epoch) {
    fn map_disk(self) -> (Record, Option<Epoch>) {
        (self.0, Some(self.1))
    }
}

#[test]
fn p07_t13_an_older_disk_is_refused() {
    let (mut record, first) = started();
    let second = begin(&mut record, Some(first), 2).unwrap();
    let known = Some(first);
    // Begun and not committed: the last one is still good, an empty one and another's are not.
    for disk in [None, Some(Epoch::new(2, &token(9)).unwrap()), Some(Epoch::new(1, &token(9)).unwrap())] {
        assert_eq!(record.begin(disk, false, &token(3)), Err(Refusal::Older { disk, known }));
    }
    commit(&mut record, second).unwrap();
    for disk in [None, Some(first)] {
        let refused = record.begin(disk, false, &token(3)).unwrap_err();
        assert_eq!(refused, Refusal::Older { disk, known: Some(second) });
    }
    let text = record.begin(Some(first), false, &token(3)).unwrap_err().to_string();
    assert_eq!(text, "the data disk (epoch 1) is older than this key service knows (epoch 2)");
}

#[test]
fn t13_a_disk_that_nobody_knows_is_refused_and_one_without_epoch_is_the_first() {
    let disk = Epoch::new(7, &token(7)).unwrap();
    assert_eq!(Record::default().begin(Some(disk), false, &token(1)), Err(Refusal::Unknown(disk)));
    let (_, _, found) = Record::default().begin(None, false, &token(1)).unwrap();
    assert_eq!(found, Found::First);
}

#[test]
fn t13_of_two_boots_from_one_disk_exactly_one_goes_on() {
    for written in [false, true] {
        let (mut record, first) = started();
        let one = begin(&mut record, Some(first), 2).unwrap();
        // The other one has the disk as it was, or as the first boot has written it.
        let two = begin(&mut record, Some(if written { one } else { first }), 3).unwrap();
        assert_eq!(record.commit(one), Err(Refusal::Superseded), "{written}");
        commit(&mut record, two).unwrap();
        assert_eq!(record.commit(one), Err(Refusal::Superseded), "{written}");
        let refused = record.begin(Some(one), false, &token(4));
        assert!(matches!(refused, Err(Refusal::Older { .. })), "{written}");
    }
}

#[test]
fn t13_where_the_app_is_warned_an_older_disk_becomes_the_last() {
    let (mut record, first) = started();
    let second = begin(&mut record, Some(first), 2).unwrap();
    commit(&mut record, second).unwrap();
    let (next, pending, found) = record.begin(Some(first), true, &token(3)).unwrap();
    assert_eq!(found, Found::Older(Refusal::Older { disk: Some(first), known: Some(second) }));
    assert_eq!(pending.number(), 3);
    // Until it has gone on, the last one is still good.
    let (_, _, found) = next.begin(Some(second), true, &token(4)).unwrap();
    assert_eq!(found, Found::Last);
    record = next;
    commit(&mut record, pending).unwrap();
    assert!(record.begin(Some(second), false, &token(5)).is_err());
    let unknown = Epoch::new(40, &token(7)).unwrap();
    let (_, pending, found) = Record::default().begin(Some(unknown), true, &token(1)).unwrap();
    assert_eq!((pending.number(), found), (41, Found::Older(Refusal::Unknown(unknown))));
}

#[test]
fn t13_what_was_forgotten_passes_once() {
    let old = Epoch::new(40, &token(7)).unwrap();
    for disk in [None, Some(old)] {
        for known in [Record::default(), started().0] {
            let mut record = known.forget();
            // Kills before the write do not use it up.
            (2..4).for_each(|n| assert!(begin(&mut record, disk, n).is_ok()));
            let (next, pending, found) = record.begin(disk, false, &token(4)).unwrap();
            assert_eq!(found, Found::Forgotten);
            // One after it does: the disk has its new epoch.
            let (after, _, found) = next.begin(Some(pending), false, &token(5)).unwrap();
            assert_eq!((found, after.forgotten), (Found::Last, false));
            record = next;
            commit(&mut record, pending).unwrap();
            assert!(record.begin(disk, false, &token(6)).is_err(), "only once");
        }
    }
}

#[test]
fn t13_forgetting_ends_the_boot_that_has_begun() {
    let (mut record, first) = started();
    let second = begin(&mut record, Some(first), 2).unwrap();
    assert_eq!(record.forget().commit(second), Err(Refusal::Superseded));
    assert_eq!(started().0.forget().commit(first), Ok(None), "one that has gone on may ask again");
}

#[test]
fn numbers_end() {
    let last = Epoch::new(u64::MAX, &token(1)).unwrap();
    let record = Record { committed: Some(last), ..Record::default() };
    assert_eq!(record.begin(Some(last), false, &token(2)), Err(Refusal::Exhausted));
}

/// What a host can do with an instance: boot images of its disk, copy the disk of a boot at any moment, and end or hold
/// a boot between any two steps. It can also change a disk under the boot that has it; no epoch finds that, and SECURITY.md
/// says so.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Boots an image up to the answer of `begin`.
    Begin(usize),
    /// The same, but the answer is lost.
    Lose(usize),
    /// Lets a boot write its epoch.
    Write(usize),
    /// Lets a boot commit, or commit again.
    Commit(usize),
    /// Makes an image of a boot's disk as it is now.
    Save(usize, usize),
}

/// A disk: what it says, and which boots have written to it.
#[derive(Debug, Clone, Default)]
struct Disk {
    epoch: Option<Epoch>,
    written_by: Vec<Epoch>,
}

#[derive(Debug, Clone)]
struct Boot {
    disk: Disk,
    epoch: Epoch,
    wrote: bool,
    gone_on: bool,
}

#[derive(Debug, Clone, Default)]
struct World {
    record: Record,
    images: [Disk; 3],
    boots: Vec<Boot>,
    /// Boots that came past their commit, in order.
    gone_on: Vec<Epoch>,
    counter: u8,
}

impl World {
    fn step(&mut self, act: Act) {
        match act {
            Act::Begin(image) => self.begin(image, true),
            Act::Lose(image) => self.begin(image, false),
            Act::Write(boot) => self.write(boot),
            Act::Commit(boot) => self.commit(boot),
            Act::Save(boot, image) => {
                if let Some(boot) = self.boots.get(boot) {
                    self.images[image] = boot.disk.clone();
                }
            }
        }
    }

    fn begin(&mut self, image: usize, answered: bool) {
        self.counter += 1;
        let disk = self.images[image].clone();
        if let Ok(epoch) = begin(&mut self.record, disk.epoch, self.counter)
            && answered
        {
            self.boots.push(Boot { disk, epoch, wrote: false, gone_on: false });
        }
    }

    fn write(&mut self, boot: usize) {
        if let Some(boot) = self.boots.get_mut(boot).filter(|boot| !boot.wrote) {
            boot.wrote = true;
            boot.disk.epoch = Some(boot.epoch);
            boot.disk.written_by.push(boot.epoch);
        }
    }

    fn commit(&mut self, boot: usize) {
        let Some(boot) = self.boots.get_mut(boot).filter(|boot| boot.wrote) else { return };
        match self.record.commit(boot.epoch) {
            Ok(Some(next)) => {
                self.record = next;
                boot.gone_on = true;
                self.gone_on.push(boot.epoch);
                // Every boot that has gone on before has written to the disk of the one that goes on now.
                let missing = self.gone_on.iter().find(|before| !boot.disk.written_by.contains(before));
                assert_eq!(missing, None, "{boot:?} of {:?}", self.gone_on);
            }
            Ok(None) => assert!(boot.gone_on, "only a lost answer is given again"),
            Err(_) => {}
        }
    }
}

const ACTS: [Act; 10] = [
    Act::Begin(0),
    Act::Begin(1),
    Act::Lose(0),
    Act::Write(0),
    Act::Write(1),
    Act::Commit(0),
    Act::Commit(1),
    Act::Commit(2),
    Act::Save(0, 1),
    Act::Save(1, 0),
];

fn explore(world: &World, depth: u32) -> u64 {
    if depth == 0 {
        return 1;
    }
    let next = |act: &Act| {
        let mut world = world.clone();
        world.step(*act);
        explore(&world, depth - 1)
    };
    ACTS.iter().map(next).sum()
}

/// All hundred thousand orders of five acts, from a new instance, and from one that has gone on and has two images.
#[test]
fn p07_t13_in_every_order_no_two_boots_with_diverging_disks_go_on() {
    let mut world = World::default();
    assert_eq!(explore(&world, 5), 100_000);
    for act in [Act::Begin(0), Act::Write(0), Act::Commit(0), Act::Save(0, 0), Act::Save(0, 1)] {
        world.step(act);
    }
    assert_eq!((world.gone_on.len(), world.images[1].epoch), (1, world.record.committed));
    world.boots.clear();
    assert_eq!(explore(&world, 5), 100_000);
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..3_usize).prop_map(Act::Begin),
        1 => (0..3_usize).prop_map(Act::Lose),
        4 => (0..12_usize).prop_map(Act::Write),
        4 => (0..12_usize).prop_map(Act::Commit),
        3 => (0..12_usize, 0..3_usize).prop_map(|(boot, image)| Act::Save(boot, image)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn p07_t13_long_runs_never_lose_what_a_boot_wrote(acts in proptest::collection::vec(act(), 0..80)) {
        let mut world = World::default();
        acts.into_iter().for_each(|act| world.step(act));
        // Whatever happened, the disk of the last boot that has gone on is good, unless another has written after it.
        let last = world.boots.iter().rfind(|boot| boot.gone_on);
        if let Some(boot) = last.filter(|boot| world.record.committed == Some(boot.epoch)) {
            prop_assert!(begin(&mut world.record, boot.disk.epoch, 255).is_ok());
        }
    }
}
