// SPDX-License-Identifier: Apache-2.0
//! Starting a proxy and reading what it costs from /proc.

use std::collections::{HashMap, HashSet};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use rustix::process::{
    getpgid, getrlimit, kill_process, setrlimit, Pid, Resource, Rlimit, Signal,
};
use rustix::thread::{sched_setaffinity, CpuSet};

/// A running proxy: its process and all its descendants.
pub struct Running {
    pid: u32,
    /// None when the proxy was started by someone else, and is only observed
    child: Option<Child>,
}

impl Running {
    /// Observe a proxy that somebody else started and will stop.
    pub fn attach(pid: u32) -> Running {
        Running { pid, child: None }
    }

    /// Start `argv` in its own process group, output to `log`, on one core if
    /// `pin` names one.
    pub fn spawn(
        argv: &[String],
        env: &[(String, String)],
        log: &Path,
        pin: Option<usize>,
    ) -> Result<Running> {
        let out = std::fs::File::create(log)?;
        // It dies with the harness, so that nothing is left running. Each program becomes the next.
        let mut cmd = Command::new("setpriv");
        cmd.args(["--pdeathsig", "TERM"]);
        if let Some(core) = pin {
            cmd.args(["taskset", "-c", &core.to_string()]);
        }
        cmd.args(argv)
            .envs(env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0);
        let child = cmd
            .spawn()
            .with_context(|| format!("starting {}", argv[0]))?;
        Ok(Running {
            pid: child.id(),
            child: Some(child),
        })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn alive(&mut self) -> bool {
        match &mut self.child {
            Some(c) => matches!(c.try_wait(), Ok(None)),
            None => Path::new(&format!("/proc/{}", self.pid)).exists(),
        }
    }

    /// Wait until something accepts connections on `addr`.
    pub fn wait_listening(&mut self, addr: std::net::SocketAddr, limit: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            if !self.alive() {
                bail!("exited before it listened on {addr}");
            }
            if std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(200)).is_ok() {
                return Ok(());
            }
            if start.elapsed() > limit {
                bail!("not listening on {addr} after {limit:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn tree(&self) -> Vec<u32> {
        tree(self.pid())
    }

    /// CPU seconds (user + system) used so far by the whole process tree.
    pub fn cpu(&self) -> f64 {
        let tick = rustix::param::clock_ticks_per_second() as f64;
        self.tree().into_iter().filter_map(stat_ticks).sum::<u64>() as f64 / tick
    }

    /// Resident KiB of the whole process tree: (sum of RSS, sum of PSS).
    pub fn memory_kib(&self) -> (u64, u64) {
        let mut rss = 0;
        let mut pss = 0;
        for pid in self.tree() {
            let Ok(s) = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
                continue;
            };
            for line in s.lines() {
                let mut w = line.split_whitespace();
                match (w.next(), w.next().and_then(|n| n.parse::<u64>().ok())) {
                    (Some("Rss:"), Some(n)) => rss += n,
                    (Some("Pss:"), Some(n)) => pss += n,
                    _ => {}
                }
            }
        }
        (rss, pss)
    }

    /// Open descriptors of the whole process tree.
    pub fn fds(&self) -> usize {
        self.tree()
            .into_iter()
            .filter_map(|p| std::fs::read_dir(format!("/proc/{p}/fd")).ok())
            .map(|d| d.count())
            .sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.is_none() {
            return;
        }
        // Only the process started here and its own descendants.
        let pids = self.tree();
        kill(self.pid(), Signal::TERM);
        let start = Instant::now();
        while self.alive() && start.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(c) = &mut self.child {
            let _ = c.kill();
            let _ = c.wait();
        }
        let group = as_pid(self.pid());
        for pid in pids {
            // a pid may have been reused: touch it only while it is in our group
            if getpgid(as_pid(pid)).ok() == group {
                kill(pid, Signal::KILL);
            }
        }
    }
}

fn as_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(pid as i32)
}

fn kill(pid: u32, signal: Signal) {
    if let Some(pid) = as_pid(pid) {
        let _ = kill_process(pid, signal); // it may be gone
    }
}

/// Parent and CPU ticks from /proc/PID/stat (the name may hold spaces).
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let s = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(
        s[s.rfind(')')? + 2..]
            .split_whitespace()
            .map(str::to_string)
            .collect(),
    )
}

fn stat_ticks(pid: u32) -> Option<u64> {
    let f = stat_fields(pid)?;
    Some(f[11].parse::<u64>().ok()? + f[12].parse::<u64>().ok()?)
}

fn tree(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    if let Ok(dir) = std::fs::read_dir("/proc") {
        for e in dir.flatten() {
            let Some(pid) = e.file_name().to_str().and_then(|s| s.parse::<u32>().ok()) else {
                continue;
            };
            if let Some(ppid) = stat_fields(pid).and_then(|f| f[1].parse::<u32>().ok()) {
                children.entry(ppid).or_default().push(pid);
            }
        }
    }
    let mut seen = HashSet::new();
    let mut todo = vec![root];
    while let Some(p) = todo.pop() {
        if seen.insert(p) {
            todo.extend(children.remove(&p).unwrap_or_default());
        }
    }
    seen.into_iter().collect()
}

/// Raise the descriptor limit (past the hard limit where root may); children
/// inherit it.
pub fn raise_nofile() -> u64 {
    let wanted = 200_000;
    let big = Rlimit {
        current: Some(wanted),
        maximum: Some(wanted),
    };
    if setrlimit(Resource::Nofile, big).is_ok() {
        return wanted;
    }
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
    maximum.unwrap_or(u64::MAX)
}

/// Bind the calling thread (and what it starts later) to one core.
pub fn pin_to(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    let _ = sched_setaffinity(None, &set); // without it the run is only noisier
}
