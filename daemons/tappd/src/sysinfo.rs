// SPDX-License-Identifier: Apache-2.0
//! The guest's load, memory and disks, from `/proc`, os-release and statvfs.

use dstack_rpc::guest::{DiskInfo, SysInfo};
use std::fs;
use std::path::Path;

/// File systems that are reported: the read-only root and the data disk.
const MOUNT_POINTS: [&str; 2] = ["/", "/data"];

/// Reads everything; what cannot be read stays empty or 0.
#[must_use]
pub fn collect() -> SysInfo {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut info = SysInfo::default();
    os_release(&text("/etc/os-release"), &mut info);
    info.kernel_version = rustix::system::uname().release().to_string_lossy().into_owned();
    cpuinfo(&text("/proc/cpuinfo"), &mut info);
    meminfo(&text("/proc/meminfo"), &mut info);
    loadavg(&text("/proc/loadavg"), &mut info);
    info.uptime = first_number(&text("/proc/uptime"));
    let mounts = text("/proc/self/mountinfo");
    info.disks = MOUNT_POINTS.iter().filter_map(|point| disk(&mounts, point)).collect();
    info
}

fn os_release(text: &str, info: &mut SysInfo) {
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        let value = value.trim().trim_matches(['"', '\'']);
        match key {
            "NAME" => value.clone_into(&mut info.os_name),
            "VERSION_ID" => value.clone_into(&mut info.os_version),
            _ => {}
        }
    }
}

fn cpuinfo(text: &str, info: &mut SysInfo) {
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        match key.trim() {
            "processor" => info.num_cpus += 1,
            "model name" => value.trim().clone_into(&mut info.cpu_model),
            _ => {}
        }
    }
}

fn meminfo(text: &str, info: &mut SysInfo) {
    let (mut buffers, mut cached) = (0, 0);
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let bytes = first_number(value).saturating_mul(1024);
        match key {
            "MemTotal" => info.total_memory = bytes,
            "MemAvailable" => info.available_memory = bytes,
            "MemFree" => info.free_memory = bytes,
            "SwapTotal" => info.total_swap = bytes,
            "SwapFree" => info.free_swap = bytes,
            "Buffers" => buffers = bytes,
            "Cached" | "SReclaimable" => cached += bytes,
            _ => {}
        }
    }
    let unused = info.free_memory.saturating_add(buffers).saturating_add(cached);
    info.used_memory = info.total_memory.saturating_sub(unused);
    info.used_swap = info.total_swap.saturating_sub(info.free_swap);
}

/// `0.50 1.25 …` as hundredths.
fn loadavg(text: &str, info: &mut SysInfo) {
    let mut words = text.split_whitespace().map(hundredths);
    info.loadavg_one = words.next().unwrap_or_default();
    info.loadavg_five = words.next().unwrap_or_default();
    info.loadavg_fifteen = words.next().unwrap_or_default();
}

fn hundredths(word: &str) -> u32 {
    word.replacen('.', "", 1).parse().unwrap_or_default()
}

/// The whole number at the beginning, after blanks.
fn first_number(text: &str) -> u64 {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.get(..end).and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

fn disk(mounts: &str, point: &str) -> Option<DiskInfo> {
    let name = device(mounts, point)?;
    let stat = rustix::fs::statvfs(Path::new(point)).ok()?;
    Some(DiskInfo {
        name,
        mount_point: point.to_owned(),
        total_size: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_size: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

/// The source of what is mounted on top at `point`, from mountinfo (see proc(5)): `… point options - type source …`.
fn device(mounts: &str, point: &str) -> Option<String> {
    let line = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some(point))?;
    let (_, filesystem) = line.split_once(" - ")?;
    filesystem.split(' ').nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files() {
        let mut info = SysInfo::default();
        os_release("NAME=\"Debian GNU/Linux\"\nVERSION_ID='13'\nID=debian\n", &mut info);
        cpuinfo("processor\t: 0\nmodel name\t: X 1\n\nprocessor\t: 1\nmodel name\t: X 1\n", &mut info);
        meminfo(
            "MemTotal:  1000 kB\nMemFree: 100 kB\nMemAvailable: 600 kB\nBuffers: 50 kB\nCached: 200 kB\n\
             SReclaimable: 50 kB\nSwapTotal: 10 kB\nSwapFree: 4 kB\n",
            &mut info,
        );
        loadavg("0.50 1.25 12.03 1/99 1234\n", &mut info);
        assert_eq!((info.os_name.as_str(), info.os_version.as_str()), ("Debian GNU/Linux", "13"));
        assert_eq!((info.num_cpus, info.cpu_model.as_str()), (2, "X 1"));
        assert_eq!((info.total_memory, info.used_memory, info.used_swap), (1_024_000, 614_400, 6144));
        assert_eq!([info.loadavg_one, info.loadavg_five, info.loadavg_fifteen], [50, 125, 1203]);
    }

    #[test]
    fn odd_texts_are_zero() {
        for (text, number) in [("", 0), ("x", 0), ("  12.5 9", 12), ("99999999999999999999", 0)] {
            assert_eq!(first_number(text), number, "{text:?}");
        }
    }

    #[test]
    fn the_topmost_mount_counts() {
        let mounts = "21 1 8:1 / / rw - ext4 /dev/old rw\n22 1 8:2 / / rw shared:1 - erofs /dev/vda ro\n";
        assert_eq!(device(mounts, "/").as_deref(), Some("/dev/vda"));
        assert_eq!(device(mounts, "/data"), None);
    }

    #[test]
    fn this_machine() {
        let info = collect();
        assert!(info.num_cpus > 0 && info.total_memory > info.used_memory && info.uptime > 0);
        assert!(info.disks.first().is_some_and(|d| d.mount_point == "/" && d.total_size >= d.free_size));
    }
}
