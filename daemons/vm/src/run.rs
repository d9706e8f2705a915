// SPDX-License-Identifier: Apache-2.0
//! The poll loop: feeds the engine with events and carries out its actions.

use crate::engine::{Action, Engine, Event, FIRMWARE, Times};
use crate::guest::GuestLink;
use crate::home::Home;
use crate::hub::Hub;
use crate::hypervisor::{self, Hypervisor};
use crate::journal::{Journal, Priority, VM_FAILED};
use crate::lines::Lines;
use crate::notify::Notify;
use crate::qmp::{Message, Qmp};
use crate::relay::{self, Relay};
use crate::setup::{self, Place, SetupError};
use crate::shutdown::Call;
use dstack_core::home::{Phase, Status};
use dstack_core::quote_sim_wire;
use dstack_core::spec::LaunchSpec;
use dstack_sys::signal::{self, Signals};
use dstack_sys::vsock::Guest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

/// Least time between two reports of the state.
const REPORT: Duration = Duration::from_millis(100);
/// Reads of each channel after QEMU's end; what is left fits a socket's buffer.
const DRAIN: usize = 64;
/// Longest line of QEMU's standard error, bytes.
const STDERR_LINE: usize = 512;

/// Whose descriptor is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Signals,
    Qemu,
    Qmp,
    Stderr,
    Serial,
    Vsock,
    Guest,
    Call,
    Home,
    Relay(relay::Ready),
    Pending(usize),
    Client(usize),
}

/// A descriptor and what to poll it for.
type Interest<'a> = (BorrowedFd<'a>, PollFlags);

struct Vm {
    began: Instant,
    engine: Engine,
    journal: Journal,
    notify: Notify,
    signals: Signals,
    qemu: Child,
    pidfd: OwnedFd,
    vsock: Option<(Child, OwnedFd)>,
    /// `None` when QEMU has closed it.
    qmp: Option<Qmp>,
    stderr: Option<(OwnedFd, Lines)>,
    words: String,
    hub: Hub,
    guest: Guest,
    link: GuestLink,
    call: Option<Call>,
    home: Home,
    relay: Option<Relay>,
    report_at: Duration,
    unreported: bool,
    watchdog: Option<(Duration, Duration)>,
    exit: Option<u8>,
}

/// Runs a VM to its end; returns the exit status. `home` is where teepod listens, `net` where passt does.
#[must_use]
pub fn run(home: PathBuf, net: PathBuf) -> u8 {
    let began = Instant::now();
    let notify = Notify;
    let signals = match Signals::block(&[signal::TERM, signal::INT, signal::power_off()]) {
        Ok(signals) => signals,
        Err(e) => return fail(&Journal::open(&[]), &SetupError::System("signalfd", e)),
    };
    let (launch, place) = match Place::from_env(net).and_then(|p| Ok((setup::launch(&p.credentials)?, p))) {
        Ok(both) => both,
        Err(e) => return fail(&Journal::open(&[]), &e),
    };
    let app = launch.vm.app_id.to_string();
    let journal = Journal::open(&[("DSTACK_VM", launch.vm.name.as_str()), ("DSTACK_APP", &app)]);
    // What setup needs is bounded, but not by systemd's default for this unit.
    notify.extend(Duration::from_secs(launch.progress_timeout.max(60)));
    notify.status("Preparing disks");
    match hypervisor::start(&launch, &place) {
        Ok(hypervisor) => Vm::new(began, &launch, home, journal, signals, hypervisor).turn(),
        Err(e) => {
            tell_home(home, &launch, &e.to_string());
            fail(&journal, &e)
        }
    }
}

fn fail(journal: &Journal, error: &SetupError) -> u8 {
    journal.log(Priority::Error, Some(VM_FAILED), &format!("Cannot start the VM: {error}"));
    Notify.status(&format!("Cannot start the VM: {error}"));
    error.status()
}

/// A VM that cannot be started still says why, if teepod is there.
fn tell_home(path: PathBuf, launch: &LaunchSpec, error: &str) {
    let status = Engine::new(times(launch), launch.cid).status();
    let status = Status { phase: Phase::Stopping, error: error.chars().take(500).collect(), ..status };
    Home::new(path, launch.vm.name.clone()).tick(Duration::ZERO, || status);
}

/// Where vsock is in user space, the guest reaches the simulated TEE through here. A VM runs without, too.
fn listen(guest: &Guest, journal: &Journal) -> Option<Relay> {
    let Guest::User(vsock) = guest else { return None };
    let relay = Relay::listen(vsock, Path::new(quote_sim_wire::SOCKET));
    let failed = |e: &io::Error| {
        let text = format!("The guest cannot reach the simulated TEE of this host: {e}");
        journal.log(Priority::Warning, None, &text);
    };
    relay.inspect_err(failed).ok()
}

const fn times(launch: &LaunchSpec) -> Times {
    Times {
        progress: Duration::from_secs(launch.progress_timeout),
        boot: Duration::from_secs(launch.boot_timeout),
        stop: Duration::from_secs(launch.stop_timeout),
    }
}

impl Vm {
    fn new(
        began: Instant,
        launch: &LaunchSpec,
        home: PathBuf,
        journal: Journal,
        signals: Signals,
        hypervisor: Hypervisor,
    ) -> Self {
        let notify = Notify;
        let interval = notify.watchdog_interval();
        let relay = listen(&hypervisor.guest, &journal);
        Self {
            began,
            engine: Engine::new(times(launch), launch.cid),
            journal,
            notify,
            signals,
            qemu: hypervisor.child,
            pidfd: hypervisor.pidfd,
            vsock: hypervisor.vsock,
            qmp: Some(Qmp::new(hypervisor.qmp)),
            stderr: Some((hypervisor.stderr, Lines::new(STDERR_LINE))),
            words: String::new(),
            hub: Hub::new(hypervisor.serial),
            link: GuestLink::new(hypervisor.guest.clone()),
            guest: hypervisor.guest,
            call: None,
            home: Home::new(home, launch.vm.name.clone()),
            relay,
            report_at: Duration::ZERO,
            unreported: false,
            watchdog: interval.map(|interval| (Duration::ZERO, interval)),
            exit: None,
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn turn(mut self) -> u8 {
        self.feed(Event::Started(self.qemu.id()));
        loop {
            self.tick();
            if let Some(status) = self.exit {
                self.end_helper();
                return status;
            }
            match self.wait() {
                // From the last to the first, so that an end that goes away does not shift those still to come.
                Ok(ready) => ready.into_iter().rev().for_each(|token| self.ready(token)),
                Err(e) => return fail(&self.journal, &SetupError::System("poll", e)),
            }
        }
    }

    /// Ends the vsock process, so that systemd need not.
    fn end_helper(&mut self) {
        if let Some((mut child, _)) = self.vsock.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits for a descriptor or the next deadline.
    fn wait(&self) -> io::Result<Vec<Token>> {
        let mut tokens = Vec::with_capacity(16);
        let mut fds = Vec::with_capacity(16);
        for (token, fd, flags) in self.interests() {
            tokens.push(token);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        let timeout = self.deadline().map(|at| at.saturating_sub(self.now()));
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = tokens.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(token, _)| token).collect())
    }

    fn interests<'a>(&'a self) -> Vec<(Token, BorrowedFd<'a>, PollFlags)> {
        let input = PollFlags::IN;
        let mut all =
            vec![(Token::Signals, self.signals.as_fd(), input), (Token::Qemu, self.pidfd.as_fd(), input)];
        let mut add = |token, interest: Option<Interest<'a>>| {
            all.extend(interest.map(|(fd, flags)| (token, fd, flags)));
        };
        add(Token::Qmp, self.qmp.as_ref().map(|qmp| (qmp.as_fd(), qmp.interest())));
        add(Token::Stderr, self.stderr.as_ref().map(|(fd, _)| (fd.as_fd(), input)));
        add(Token::Vsock, self.vsock.as_ref().map(|(_, fd)| (fd.as_fd(), input)));
        add(Token::Serial, self.hub.interest());
        add(Token::Guest, self.link.interest());
        add(Token::Call, self.call.as_ref().and_then(Call::interest));
        add(Token::Home, self.home.interest());
        self.relay
            .iter()
            .flat_map(Relay::interests)
            .for_each(|(r, fd, f)| add(Token::Relay(r), Some((fd, f))));
        self.home.pending().enumerate().for_each(|(n, i)| add(Token::Pending(n), Some(i)));
        self.hub.clients().enumerate().for_each(|(n, i)| add(Token::Client(n), Some(i)));
        all
    }

    fn deadline(&self) -> Option<Duration> {
        let report = self.unreported.then_some(self.report_at);
        let watchdog = self.watchdog.map(|(at, _)| at);
        let all = [self.engine.deadline(), self.link.deadline(), self.home.deadline(), report, watchdog];
        all.into_iter().flatten().min()
    }

    /// Whatever is due by time.
    fn tick(&mut self) {
        let now = self.now();
        if let Some((at, interval)) = self.watchdog.filter(|(at, _)| *at <= now) {
            self.notify.watchdog();
            self.watchdog = Some((at.max(now) + interval, interval));
        }
        self.link.tick(now);
        self.relay.iter_mut().for_each(Relay::sweep);
        self.feed(Event::Tick);
        let engine = &self.engine;
        self.home.tick(now, || engine.status());
        self.unreported |= self.engine.take_changed();
        if self.unreported && self.report_at <= now {
            self.report();
        }
    }

    fn report(&mut self) {
        self.unreported = false;
        self.report_at = self.now() + REPORT;
        self.notify.status(&self.engine.sentence());
        self.home.publish(self.engine.status());
        self.home.flush(self.report_at);
    }

    fn ready(&mut self, token: Token) {
        let now = self.now();
        match token {
            Token::Signals => self.signalled(),
            Token::Qemu => self.qemu_ended(),
            Token::Qmp => self.qmp_ready(),
            Token::Stderr => self.stderr_ready(),
            Token::Serial => self.serial_ready(),
            Token::Vsock => self.vsock_ended(),
            Token::Guest => {
                let lines = self.link.ready(now);
                lines.into_iter().for_each(|line| self.feed(Event::Guest(line)));
            }
            Token::Call => {
                if let Some(accepted) = self.call.as_mut().and_then(Call::ready) {
                    self.call = None;
                    self.feed(Event::Asked(accepted));
                }
            }
            Token::Home => self.home_ready(),
            Token::Relay(ready) => self.relay.iter_mut().for_each(|relay| relay.ready(ready)),
            Token::Pending(index) => self.home.pending_ready(index, now),
            Token::Client(index) => self.hub.client_ready(index),
        }
    }

    fn signalled(&mut self) {
        while let Ok(Some(_)) = self.signals.next() {
            self.feed(Event::Stop);
        }
    }

    fn qmp_ready(&mut self) {
        match self.qmp.as_mut().map(Qmp::ready) {
            Some(Ok(Some(messages))) => messages.into_iter().for_each(|m| self.feed(Event::Qmp(m))),
            _ => self.qmp = None,
        }
    }

    fn stderr_ready(&mut self) {
        let Some((fd, lines)) = &mut self.stderr else { return };
        let mut chunk = [0; 4096];
        match rustix::io::read(&*fd, &mut chunk) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Ok(0) | Err(_) => self.stderr = None,
            Ok(count) => {
                for line in lines.push(chunk.get(..count).unwrap_or_default()) {
                    let text = String::from_utf8_lossy(&line);
                    let text = text.split_once(": ").map_or(&*text, |(_, rest)| rest);
                    self.journal.log(Priority::Warning, None, &format!("QEMU: {text}"));
                    self.words = text.chars().take(300).collect();
                }
            }
        }
    }

    fn serial_ready(&mut self) {
        let seen = self.hub.serial_ready(self.now(), &self.journal);
        if seen.byte {
            self.feed(Event::Seen(FIRMWARE));
        }
        if seen.kernel {
            self.feed(Event::Seen("kernel"));
        }
    }

    fn vsock_ended(&mut self) {
        if let Some((mut child, _)) = self.vsock.take() {
            let _ = child.wait();
            let text = "The vsock process has ended: the guest cannot be reached any more; restart the VM";
            self.journal.log(Priority::Error, Some(VM_FAILED), text);
        }
    }

    fn home_ready(&mut self) {
        for id in self.home.ready(self.now(), &self.guest) {
            match self.hub.attach() {
                Ok(stream) => self.home.opened(id, stream),
                Err(e) => self.home.fail(id, &e.to_string()),
            }
        }
        self.home.flush(self.now());
    }

    /// Reads the last of every channel before deciding how it ended.
    fn qemu_ended(&mut self) {
        let _ = self.qemu.wait();
        for _ in 0..DRAIN {
            self.qmp_ready();
            self.stderr_ready();
        }
        self.hub.drain(self.now(), &self.journal);
        if self.hub.dropped() > 0 || self.link.malformed > 0 {
            let (bytes, lines) = (self.hub.dropped(), self.link.malformed);
            let text =
                format!("Left out: {bytes} control bytes of the console, {lines} malformed status lines");
            self.journal.log(Priority::Info, None, &text);
        }
        let words = std::mem::take(&mut self.words);
        self.feed(Event::Ended(words));
    }

    fn feed(&mut self, event: Event) {
        let now = self.now();
        for action in self.engine.handle(event, now) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Ready => {
                self.notify.ready(&self.engine.sentence());
                self.report();
            }
            Action::Stopping => self.notify.stopping(),
            Action::Extend(time) => self.notify.extend(time),
            Action::Log(priority, id, text) => self.journal.log(priority, id, &text),
            Action::AskGuest => match Call::start(&self.guest) {
                Ok(call) => self.call = Some(call),
                Err(_) => self.feed(Event::Asked(false)),
            },
            Action::Qmp(command) => {
                let refused = |e: io::Error| Event::Qmp(Message::Refused(e.to_string()));
                if let Some(event) = self.qmp.as_mut().and_then(|qmp| qmp.execute(command).err()).map(refused)
                {
                    self.feed(event);
                }
            }
            Action::Kill => drop(self.qemu.kill()),
            Action::Exit(status) => {
                self.report();
                self.exit = Some(status);
            }
        }
    }
}
