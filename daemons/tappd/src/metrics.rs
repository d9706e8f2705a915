// SPDX-License-Identifier: Apache-2.0
//! `/metrics` in the OpenMetrics text format.

use crate::timing::{Quotes, Sum};
use dstack_rpc::guest::{DiskInfo, SysInfo};
use std::fmt::{Display, Write as _};
use std::fs;

/// Content type of the page.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What this process uses.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Process {
    /// Processor time, seconds.
    pub cpu_seconds: f64,
    /// Start, Unix seconds.
    pub start_seconds: f64,
    /// Address space, bytes.
    pub virtual_bytes: u64,
    /// Memory in use, bytes.
    pub resident_bytes: u64,
    /// Open descriptors.
    pub open_fds: u64,
    /// Most open descriptors.
    pub max_fds: u64,
}

impl Process {
    /// Reads `/proc/self`; what cannot be read is 0.
    #[must_use]
    pub fn collect() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mut process = Self::parse(&text("/proc/self/stat"), &text("/proc/stat"));
        process.open_fds =
            fs::read_dir("/proc/self/fd").map_or(0, |d| u64::try_from(d.count()).unwrap_or_default());
        process.max_fds = max_fds(&text("/proc/self/limits"));
        process
    }

    /// From the texts of `/proc/self/stat` and `/proc/stat`, see proc(5).
    fn parse(stat: &str, system: &str) -> Self {
        let ticks = rustix::param::clock_ticks_per_second();
        let page = u64::try_from(rustix::param::page_size()).unwrap_or_default();
        // The name before the last parenthesis may have blanks; field 3 comes after it.
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .map(|word| word.parse().unwrap_or_default())
            .collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
        let boot = system.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
        Self {
            cpu_seconds: seconds(field(14).saturating_add(field(15)), ticks),
            start_seconds: seconds(field(22), ticks) + seconds(boot.unwrap_or_default(), 1),
            virtual_bytes: field(23),
            resident_bytes: field(24).saturating_mul(page),
            ..Self::default()
        }
    }
}

/// The soft limit in `/proc/self/limits`; the unit's system call filter leaves no `prlimit`.
fn max_fds(limits: &str) -> u64 {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[allow(clippy::cast_precision_loss, reason = "seconds since 1970 and processor time fit into 53 bits")]
fn seconds(ticks: u64, per_second: u64) -> f64 {
    ticks as f64 / per_second.max(1) as f64
}

/// The whole page.
#[must_use]
pub fn render(info: &SysInfo, process: &Process, quotes: &Quotes) -> String {
    let mut page = Page::default();
    page.info("system_os_name", "Operating system", "os_name", &info.os_name);
    page.info("system_os_version", "Version of the operating system", "os_version", &info.os_version);
    page.info("system_kernel_version", "Kernel release", "kernel_version", &info.kernel_version);
    page.info("system_cpu_model", "Processor", "cpu_model", &info.cpu_model);
    page.gauge("system_num_cpus", "Processors", info.num_cpus);
    page.gauge("system_memory_total", "Memory, bytes", info.total_memory);
    page.gauge("system_memory_available", "Memory that can be used, bytes", info.available_memory);
    page.gauge("system_memory_used", "Memory in use, bytes", info.used_memory);
    page.gauge("system_memory_free", "Memory used for nothing, bytes", info.free_memory);
    page.gauge("system_swap_total", "Swap, bytes", info.total_swap);
    page.gauge("system_swap_used", "Swap in use, bytes", info.used_swap);
    page.gauge("system_swap_free", "Free swap, bytes", info.free_swap);
    page.gauge("system_uptime", "Seconds since boot", info.uptime);
    page.gauge("system_load_average_1m", "Load of one minute, hundredths", info.loadavg_one);
    page.gauge("system_load_average_5m", "Load of five minutes, hundredths", info.loadavg_five);
    page.gauge("system_load_average_15m", "Load of fifteen minutes, hundredths", info.loadavg_fifteen);
    page.disks("disk_total_size", "Size, bytes", &info.disks, |d| d.total_size);
    page.disks("disk_free_size", "Free, bytes", &info.disks, |d| d.free_size);
    page.disks("disk_used_size", "Used, bytes", &info.disks, used);
    page.disks("disk_usage_percentage", "Used, percent", &info.disks, usage);
    page.process(process);
    page.durations("quote", "Quotes, from request to reply", quotes.whole.sum());
    page.durations("quote_platform", "Quotes, the TEE's part", quotes.platform.sum());
    page.0.push_str("# EOF\n");
    page.0
}

const fn used(disk: &DiskInfo) -> u64 {
    disk.total_size.saturating_sub(disk.free_size)
}

fn usage(disk: &DiskInfo) -> u64 {
    used(disk).saturating_mul(100).checked_div(disk.total_size).unwrap_or_default()
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String does not fail.
        let _ = write!(self.0, "# TYPE {name} {kind}\n# HELP {name} {help}\n");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn info(&mut self, name: &str, help: &str, label: &str, value: &str) {
        self.head(name, "gauge", help);
        let _ = writeln!(self.0, "{name}{{{label}=\"{}\"}} 1", escape(value));
    }

    fn disks(&mut self, name: &str, help: &str, disks: &[DiskInfo], value: impl Fn(&DiskInfo) -> u64) {
        self.head(name, "gauge", help);
        for disk in disks {
            let (device, point) = (escape(&disk.name), escape(&disk.mount_point));
            let value = value(disk);
            let _ = writeln!(self.0, "{name}{{name=\"{device}\",mount_point=\"{point}\"}} {value}");
        }
    }

    /// `<what>_seconds` as a summary, and `<what>_last_seconds`.
    fn durations(&mut self, what: &str, help: &str, sum: Sum) {
        let micros = |value: u64| seconds(value, 1_000_000);
        self.head(&format!("{what}_seconds"), "summary", &format!("{help}, seconds"));
        let _ =
            writeln!(self.0, "{what}_seconds_count {}\n{what}_seconds_sum {}", sum.count, micros(sum.sum));
        self.gauge(&format!("{what}_last_seconds"), &format!("{help}, the last, seconds"), micros(sum.last));
    }

    fn process(&mut self, process: &Process) {
        self.head("process_cpu_seconds", "counter", "Processor time of the agent, seconds");
        let _ = writeln!(self.0, "process_cpu_seconds_total {}", process.cpu_seconds);
        self.gauge("process_start_time_seconds", "Start of the agent, Unix seconds", process.start_seconds);
        self.gauge("process_virtual_memory_bytes", "Address space of the agent", process.virtual_bytes);
        self.gauge("process_resident_memory_bytes", "Memory of the agent", process.resident_bytes);
        self.gauge("process_open_fds", "Open descriptors of the agent", process.open_fds);
        self.gauge("process_max_fds", "Most open descriptors of the agent", process.max_fds);
    }
}

/// A label's value: backslash, quote and line end are escaped.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn p32_labels_cannot_forge_samples() {
        let info = SysInfo { cpu_model: "a\"} 1\nforged{x=\"\\".into(), ..SysInfo::default() };
        let page = render(&info, &Process::default(), &Quotes::default());
        assert!(page.contains("system_cpu_model{cpu_model=\"a\\\"} 1\\nforged{x=\\\"\\\\\"} 1\n"), "{page}");
        assert!(!page.lines().any(|line| line.starts_with("forged")));
    }

    #[test]
    fn every_sample_follows_its_type_and_the_page_ends() {
        let disk =
            DiskInfo { name: "/dev/vdb".into(), mount_point: "/data".into(), total_size: 200, free_size: 50 };
        let quotes = Quotes::default();
        for millis in [1500, 500] {
            quotes.whole.add(Duration::from_millis(millis));
        }
        let info = SysInfo { disks: vec![disk], ..SysInfo::default() };
        let page = render(&info, &Process::default(), &quotes);
        assert!(page.contains("quote_seconds_count 2\nquote_seconds_sum 2\n"), "{page}");
        assert!(
            page.contains("quote_last_seconds 0.5\n") && page.contains("quote_platform_seconds_count 0\n")
        );
        assert!(page.contains("disk_usage_percentage{name=\"/dev/vdb\",mount_point=\"/data\"} 75\n"));
        assert!(page.ends_with("# EOF\n"));
        let mut family = "";
        for line in page.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => family = rest.split(' ').next().unwrap_or_default(),
                None => assert!(line.starts_with('#') || line.starts_with(family), "{line} below {family}"),
            }
        }
    }

    #[test]
    fn process_figures() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 1000 4096000 10 x";
        let process = Process::parse(stat, "cpu 1\nbtime 1700000000\n");
        assert!((process.cpu_seconds - 2.0).abs() < 1e-9);
        assert!((process.start_seconds - 1_700_000_010.0).abs() < 1e-6);
        assert_eq!((process.virtual_bytes, process.resident_bytes), (4_096_000, 40_960));
        assert!(Process::collect().open_fds > 0);
        assert_eq!(max_fds("Max processes  7 7 p\nMax open files   1024    4096   files\n"), 1024);
    }
}
