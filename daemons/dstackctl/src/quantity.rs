// SPDX-License-Identifier: Apache-2.0
//! Sizes, durations, times and port mappings as people write them.

use dstack_core::spec::{PortMapping, Protocol};
use std::net::IpAddr;
use std::time::Duration;

const UNITS: [(&str, u32); 4] = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];

/// Parses a size with its unit: `512M`, `2G`, `1.5G`, `2GiB`; always powers of 1024. Returns bytes.
///
/// # Errors
/// A sentence that says what is allowed; a number without a unit is refused, since it could mean MiB or GiB.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: write a number with its unit, such as 512M, 2G or 1T");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.strip_prefix(digits).unwrap_or_default().to_ascii_uppercase();
    let unit = unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit);
    let (_, shift) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let whole = whole.checked_mul(1 << shift).ok_or_else(wrong)?;
    whole.checked_add(parse_fraction(fraction, shift).ok_or_else(wrong)?).ok_or_else(wrong)
}

/// `digits` after the point, of a unit of `1 << shift` bytes; at most three digits.
fn parse_fraction(digits: &str, shift: u32) -> Option<u64> {
    if digits.is_empty() {
        return Some(0);
    }
    let plain = digits.len() <= 3 && digits.bytes().all(|b| b.is_ascii_digit());
    let scale = 10_u64.pow(u32::try_from(digits.len()).ok()?);
    plain.then(|| digits.parse::<u64>().ok()).flatten().map(|n| (n << shift) / scale)
}

/// A size for people: the largest unit that leaves no more than one digit after the point.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let unit = UNITS.iter().rev().find(|(_, shift)| bytes >= 1 << shift);
    let Some((name, shift)) = unit else { return format!("{bytes} B") };
    let tenths = (u128::from(bytes) * 10 + (1 << (shift - 1))) >> shift;
    match tenths % 10 {
        0 => format!("{} {name}iB", tenths / 10),
        rest => format!("{}.{rest} {name}iB", tenths / 10),
    }
}

/// Parses a duration: `90`, `90s`, `5min`, `2h`, `1h30m`, `1d`.
///
/// # Errors
/// A sentence that says what is allowed.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time span: write 90s, 5min, 2h or 1h30m");
    let mut rest = text.trim();
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (digits, tail) = rest.split_at_checked(number).ok_or_else(wrong)?;
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(letters).ok_or_else(wrong)?;
        let seconds = seconds_of(unit).ok_or_else(wrong)?;
        let value: u64 = digits.parse().map_err(|_| wrong())?;
        total = value.checked_mul(seconds).and_then(|v| total.checked_add(v)).ok_or_else(wrong)?;
        rest = tail.trim_start();
    }
    if text.trim().is_empty() { Err(wrong()) } else { Ok(Duration::from_secs(total)) }
}

fn seconds_of(unit: &str) -> Option<u64> {
    match unit {
        "" | "s" | "sec" => Some(1),
        "m" | "min" => Some(60),
        "h" => Some(3600),
        "d" => Some(86400),
        "w" => Some(7 * 86400),
        _ => None,
    }
}

/// A duration for people: `8.3s`, `2m 05s`, `3h 20m`.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}.{}s", duration.subsec_millis() / 100),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// Parses a point in time: seconds since 1970, RFC 3339, or a duration before `now` (`10m`). Returns seconds since 1970.
///
/// # Errors
/// A sentence that says what is allowed.
pub fn parse_time(text: &str, now: u64) -> Result<u64, String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map_err(|_| format!("{text:?} is too large for a time"));
    }
    if let Ok(ago) = parse_duration(text) {
        return Ok(now.saturating_sub(ago.as_secs()));
    }
    let stamp: Result<jiff::Timestamp, _> = text.parse();
    stamp.ok().and_then(|t| u64::try_from(t.as_second()).ok()).ok_or_else(|| {
        format!("{text:?} is not a time: write 10m (ago), 2026-01-31T12:00:00Z, or seconds since 1970")
    })
}

/// A port mapping as written: without an address, teepod's own is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortArg {
    /// Address on the host, if one was written.
    pub address: Option<IpAddr>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the host.
    pub host: u16,
    /// Port in the VM.
    pub vm: u16,
}

impl PortArg {
    /// The mapping, with this address where none was written.
    #[must_use]
    pub fn mapping(&self, default: IpAddr) -> PortMapping {
        PortMapping {
            protocol: self.protocol,
            host_address: self.address.unwrap_or(default),
            host_port: self.host,
            vm_port: self.vm,
        }
    }
}

/// Parses `[ADDRESS:]HOST:VM[/tcp|udp]`; an IPv6 address stands in brackets.
///
/// # Errors
/// A sentence that says what is allowed.
pub fn parse_port(text: &str) -> Result<PortArg, String> {
    let wrong = || {
        format!(
            "{text:?} is not a port mapping: write HOST:VM, ADDRESS:HOST:VM or HOST:VM/udp, such as 8080:80"
        )
    };
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.parse().map_err(|_| wrong())?;
    let (rest, vm) = ports.rsplit_once(':').ok_or_else(wrong)?;
    let (address, host) = match rest.rsplit_once(':') {
        Some((address, host)) => (Some(parse_address(address).ok_or_else(wrong)?), host),
        None => (None, rest),
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|p| *p != 0).ok_or_else(wrong);
    Ok(PortArg { address, protocol, host: port(host)?, vm: port(vm)? })
}

fn parse_address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    }
}

#[cfg(test)]
#[path = "quantity_tests.rs"]
mod tests;
