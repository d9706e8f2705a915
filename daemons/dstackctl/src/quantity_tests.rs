// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;

const MIB: u64 = 1 << 20;

#[test]
fn sizes() {
    for (text, bytes) in [
        ("512M", 512 * MIB),
        ("2G", 2048 * MIB),
        ("2g", 2048 * MIB),
        ("2GiB", 2048 * MIB),
        ("2GB", 2048 * MIB),
        ("1.5G", 1536 * MIB),
        ("1T", 1 << 40),
        ("64K", 64 << 10),
    ] {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
    for bad in ["", "2048", "G", "-1G", "1.G.2", "1.2345G", "2X", "2 G", "99999999999T", "1.-5G", "é"] {
        assert!(parse_size(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn sizes_for_people() {
    for (bytes, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (512 * MIB, "512 MiB"),
        (1536 * MIB, "1.5 GiB"),
        (20 << 30, "20 GiB"),
        (u64::MAX, "16777216 TiB"),
    ] {
        assert_eq!(show_size(bytes), text);
    }
}

#[test]
fn durations() {
    for (text, seconds) in [
        ("90", 90),
        ("90s", 90),
        ("5min", 300),
        ("5m", 300),
        ("1h30m", 5400),
        ("1h 5s", 3605),
        ("2d", 172_800),
    ] {
        assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
    }
    for bad in ["", "x", "5y", "-5s", "s", "99999999999999999999s", "18446744073709551615h", "5é"] {
        assert!(parse_duration(bad).is_err(), "{bad:?}");
    }
    for (millis, text) in [(8350, "8.3s"), (125_000, "2m 05s"), (12_000_000, "3h 20m")] {
        assert_eq!(show_duration(Duration::from_millis(millis)), text);
    }
}

#[test]
fn times() {
    for (text, seconds) in [("0", 0), ("1700000000", 1_700_000_000), ("10m", 400), ("2h", 0)] {
        assert_eq!(parse_time(text, 1000), Ok(seconds), "{text}");
    }
    assert_eq!(parse_time("1970-01-02T00:00:00Z", 0), Ok(86400));
    for bad in ["", "yesterday", "2026-13-01T00:00:00Z", "1960-01-01T00:00:00Z"] {
        assert!(parse_time(bad, 0).is_err(), "{bad:?}");
    }
}

#[test]
fn ports() {
    let port = |address: Option<&str>, protocol, host, vm| {
        Ok(PortArg { address: address.map(|a| a.parse().unwrap()), protocol, host, vm })
    };
    for (text, expected) in [
        ("8080:80", port(None, Protocol::Tcp, 8080, 80)),
        ("8080:80/tcp", port(None, Protocol::Tcp, 8080, 80)),
        ("53:5353/udp", port(None, Protocol::Udp, 53, 5353)),
        ("0.0.0.0:8080:80", port(Some("0.0.0.0"), Protocol::Tcp, 8080, 80)),
        ("[::1]:8080:80", port(Some("::1"), Protocol::Tcp, 8080, 80)),
    ] {
        assert_eq!(parse_port(text), expected, "{text}");
    }
    for bad in [
        "",
        "80",
        "0:80",
        "80:0",
        "65536:80",
        "a:b",
        "8080:80/sctp",
        "::1:8080:80",
        "localhost:8080:80",
        ":80",
        "80:",
    ] {
        let error = parse_port(bad).unwrap_err();
        assert!(error.contains("8080:80"), "{bad}: {error}");
    }
}
