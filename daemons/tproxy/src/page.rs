// SPDX-License-Identifier: Apache-2.0
//! The dashboard and the metrics, as text. Pure; whatever comes from others is escaped (known attack P32).

use crate::acme::Info;
use crate::engine::flows::Plane;
use crate::registry::Entry;
use dstack_core::flow::{Counters, Kind};
use std::fmt::Write;

/// Prefix of every metric.
const PREFIX: &str = "dstack_tproxy";

/// What both show.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Now, Unix seconds.
    pub now: u64,
    /// Base domain.
    pub domain: String,
    /// Instances, by app.
    pub entries: Vec<Entry>,
    /// Connected data planes.
    pub planes: Vec<Plane>,
    /// Totals of all data planes.
    pub counters: Counters,
    /// Whether there is a tunnel, or why not.
    pub tunnel: Result<(), String>,
    /// Account and keys, or why they cannot be told.
    pub acme: Result<Info, String>,
}

/// Text inside HTML.
#[must_use]
pub fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The value of a label in OpenMetrics.
#[must_use]
pub fn escape_label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Seconds in words.
#[must_use]
pub fn ago(now: u64, then: Option<u64>) -> String {
    let Some(then) = then else { return "never".to_owned() };
    let (number, unit) = match now.saturating_sub(then) {
        seconds @ 0..60 => (seconds, "second"),
        seconds @ 60..3600 => (seconds / 60, "minute"),
        seconds @ 3600..86_400 => (seconds / 3600, "hour"),
        seconds => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{} ago", if number == 1 { "" } else { "s" })
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;\
color-scheme:light dark}table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .8rem .3rem 0;\
border-bottom:1px solid #8884}code{font-size:.85em;overflow-wrap:anywhere}.bad{font-weight:bold}";

/// The page's own style, which its policy lets in by its hash.
#[must_use]
pub const fn style() -> &'static str {
    STYLE
}

/// The dashboard.
#[must_use]
pub fn dashboard(seen: &Seen) -> String {
    let title = format!("dstack ingress of {}", escape_html(&seen.domain));
    let online = seen.entries.iter().filter(|e| e.is_online(seen.now)).count();
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n\
         <p>{} instances are registered, {online} are online; {} connections are open.</p>\n",
        seen.entries.len(),
        seen.counters.open,
    );
    if let Err(reason) = &seen.tunnel {
        page += &format!("<p class=\"bad\">There is no tunnel to them: {}</p>\n", escape_html(reason));
    }
    page += &certificates(&seen.acme);
    page += "<h2>Instances</h2>\n<table><thead><tr><th scope=\"col\">Instance</th><th scope=\"col\">App</th>\
             <th scope=\"col\">Address</th><th scope=\"col\">Latest handshake</th><th scope=\"col\"></th></tr></thead><tbody>\n";
    for entry in &seen.entries {
        page += &row(entry, seen.now);
    }
    page + "</tbody></table></body></html>\n"
}

fn row(entry: &Entry, now: u64) -> String {
    let instance = &entry.instance;
    let mark = match (entry.clone_alarm, instance.drained) {
        (Some(_), _) => "two machines have this identity",
        (None, true) => "drained",
        (None, false) => "",
    };
    format!(
        "<tr><td><code>{}</code></td><td><code>{}</code></td><td>{}</td><td>{}</td><td class=\"bad\">{mark}</td></tr>\n",
        instance.instance_id,
        instance.app_id,
        instance.address,
        ago(now, entry.handshake),
    )
}

fn certificates(acme: &Result<Info, String>) -> String {
    let info = match acme {
        Ok(info) => info,
        Err(reason) => {
            return format!(
                "<p class=\"bad\">The certificates cannot be read: {}</p>\n",
                escape_html(reason)
            );
        }
    };
    let account = if info.account_uri.is_empty() { "none" } else { &info.account_uri };
    let mut text = format!(
        "<h2>Certificates</h2>\n<p>ACME account: <code>{}</code></p>\n<p>Public keys that were in use:</p>\n<ul>\n",
        escape_html(account)
    );
    for key in &info.public_keys {
        text += &format!("<li><code>{}</code></li>\n", hex::encode(key));
    }
    text + "</ul>\n"
}

/// The metrics, as OpenMetrics text.
#[must_use]
pub fn metrics(seen: &Seen) -> String {
    let mut text = String::new();
    let online = seen.entries.iter().filter(|e| e.is_online(seen.now)).count();
    let alarms = seen.entries.iter().filter(|e| e.clone_alarm.is_some()).count();
    gauge(&mut text, "instances", "Registered instances.", seen.entries.len());
    gauge(&mut text, "instances_online", "Instances with a handshake in the last 300 seconds.", online);
    gauge(&mut text, "clone_alarms", "Instances of which two were seen.", alarms);
    gauge(
        &mut text,
        "tunnel_up",
        "Whether the WireGuard interface is there.",
        usize::from(seen.tunnel.is_ok()),
    );
    gauge(&mut text, "data_planes", "Connected data planes.", seen.planes.len());
    for (name, kind, help, value) in seen.counters.each() {
        let (word, suffix) = match kind {
            Kind::Counter => ("counter", "_total"),
            Kind::Gauge => ("gauge", ""),
        };
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "# TYPE {PREFIX}_{name} {word}\n# HELP {PREFIX}_{name} {help}\n{PREFIX}_{name}{suffix} {value}\n"
        );
    }
    handshakes(&mut text, seen);
    text + "# EOF\n"
}

fn gauge(text: &mut String, name: &str, help: &str, value: usize) {
    let _ = write!(
        text,
        "# TYPE {PREFIX}_{name} gauge\n# HELP {PREFIX}_{name} {help}\n{PREFIX}_{name} {value}\n"
    );
}

fn handshakes(text: &mut String, seen: &Seen) {
    let name = format!("{PREFIX}_handshake_seconds");
    let _ = write!(text, "# TYPE {name} gauge\n# HELP {name} Time of an instance's last handshake.\n");
    for entry in &seen.entries {
        let Some(handshake) = entry.handshake else { continue };
        let (app, id) = (entry.instance.app_id.to_string(), entry.instance.instance_id.to_string());
        let _ = writeln!(
            text,
            "{name}{{app=\"{}\",instance=\"{}\"}} {handshake}",
            escape_label(&app),
            escape_label(&id)
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::pool::{Pool, Range};
    use crate::registry::{Claim, Ports, Registry};

    fn seen() -> Seen {
        let range = Range::of(&"10.0.0.0/24".parse().unwrap()).unwrap();
        let pool = Pool::new(range, [10, 0, 0, 1].into(), Vec::new());
        let mut registry = Registry::new([9; 32].into(), pool);
        let claim = |n: u8| Claim {
            app_id: [n; 20].into(),
            instance_id: [n; 20].into(),
            public_key: [n; 32].into(),
            ports: Ports::default(),
        };
        registry.register(claim(1), 1000).unwrap();
        registry.register(claim(2), 1000).unwrap();
        registry.observe(&[1; 32].into(), Some(1000));
        let info = Info { account_uri: "https://acme/<1>".into(), public_keys: vec![vec![0xab]] };
        let mut entries: Vec<Entry> = registry.entries().cloned().collect();
        entries.sort_by_key(|e| e.instance.instance_id);
        Seen {
            now: 1060,
            domain: "a.b\"<script>".into(),
            entries,
            planes: Vec::new(),
            counters: Counters { accepted: 7, open: 2, ..Counters::default() },
            tunnel: Err("no <b>WireGuard</b>".into()),
            acme: Ok(info),
        }
    }

    #[test]
    fn p32_nothing_of_others_is_markup() {
        let page = dashboard(&seen());
        for bad in ["<script>", "<b>", "<1>"] {
            assert!(!page.contains(bad), "{bad}");
        }
        for good in
            ["&lt;1&gt;", "1 minute ago", "never", "<code>ab</code>", &"01".repeat(20), "2 connections"]
        {
            assert!(page.contains(good), "{good}: {page}");
        }
        assert_eq!(escape_html("<a href='x\">&"), "&lt;a href=&#39;x&quot;&gt;&amp;");
        assert_eq!(escape_label("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }

    #[test]
    fn metrics_are_open_metrics() {
        let text = metrics(&seen());
        assert!(text.ends_with("# EOF\n"));
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        for expected in [
            "dstack_tproxy_instances 2",
            "dstack_tproxy_instances_online 1",
            "dstack_tproxy_tunnel_up 0",
            "dstack_tproxy_accepted_total 7",
            "dstack_tproxy_open 2",
        ] {
            assert!(samples.contains(&expected), "{expected}: {text}");
        }
        let labelled =
            format!("dstack_tproxy_handshake_seconds{{app=\"{0}\",instance=\"{0}\"}} 1000", "01".repeat(20));
        assert!(samples.contains(&labelled.as_str()), "{text}");
        // Every sample belongs to a family that was declared once.
        for sample in samples {
            let name = sample.split([' ', '{']).next().unwrap();
            let family = name.strip_suffix("_total").unwrap_or(name);
            assert_eq!(text.matches(&format!("# TYPE {family} ")).count(), 1, "{sample}");
        }
    }

    #[test]
    fn every_number_of_the_data_planes_is_a_metric() {
        let mut numbers = serde_json::to_value(Counters::default()).unwrap();
        let numbers = numbers.as_object_mut().unwrap();
        for (number, value) in (1_000_u64..).zip(numbers.values_mut()) {
            *value = number.into();
        }
        let counters = serde_json::from_value(numbers.clone().into()).unwrap();
        let text = metrics(&Seen { counters, ..seen() });
        assert!(numbers.len() >= 30);
        for (name, value) in numbers {
            let counter = format!("dstack_tproxy_{name}_total {value}");
            let gauge = format!("dstack_tproxy_{name} {value}");
            assert_eq!(text.lines().filter(|line| **line == counter || **line == gauge).count(), 1, "{name}");
        }
    }

    #[test]
    fn times_in_words() {
        for (passed, text) in
            [(0, "0 seconds ago"), (61, "1 minute ago"), (7200, "2 hours ago"), (86_400, "1 day ago")]
        {
            assert_eq!(ago(100_000, Some(100_000 - passed)), text);
        }
        assert_eq!(ago(5, Some(9)), "0 seconds ago");
    }
}
