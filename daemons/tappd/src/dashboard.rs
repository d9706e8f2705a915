// SPDX-License-Identifier: Apache-2.0
//! The page at `/`: rendered here, without scripts and without anything from elsewhere.

use crate::app::App;
use crate::docker;
use crate::info::Measured;
use crate::logs::names;
use dstack_ra_tls::Label;
use dstack_rpc::guest::{Container, SysInfo};
use std::fmt::{Display, Write as _};

/// What the page may load: its own style sheet.
pub const CONTENT_SECURITY_POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The style sheet at `/style.css`.
pub const STYLE: &str = include_str!("style.css");

/// What the page shows; `None` is what is not public or not known.
#[derive(Debug)]
pub struct View<'a> {
    /// The app.
    pub app: &'a App,
    /// Its addresses at the ingress, as links.
    pub addresses: &'a [String],
    /// Load and disks.
    pub sysinfo: Option<&'a SysInfo>,
    /// Containers, or why they are not known.
    pub containers: Option<Result<&'a [Container], &'a str>>,
    /// Keys and TEE.
    pub trust: Trust,
}

/// What the page says about keys and TEE.
#[derive(Debug, Default)]
pub struct Trust {
    /// Who gave the keys: `kms`, `none`, or nobody.
    pub provider: &'static str,
    /// The root that quotes stand under; `None` where there are no quotes.
    pub realm: Option<Label>,
    /// Registers, when they are public.
    pub measured: Option<Measured>,
    /// The agent's own certificate, when it is public and there is one.
    pub certificate: String,
}

/// The whole page.
#[must_use]
pub fn render(view: &View<'_>) -> String {
    let title = if view.app.name.is_empty() { "dstack guest" } else { &view.app.name };
    let mut page = Page(String::with_capacity(8192));
    page.raw("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>");
    page.text(title);
    page.raw("</title>\n<link rel=\"stylesheet\" href=\"style.css\">\n</head>\n<body>\n<main>\n<h1>");
    page.text(title);
    page.raw("</h1>\n");
    page.identity(view.app, view.addresses);
    page.trust(&view.trust);
    if let Some(info) = view.sysinfo {
        page.system(info);
    }
    match view.containers {
        Some(Ok(containers)) => page.containers(containers, view.app.public_logs),
        Some(Err(error)) => page.note("Containers", error),
        None => page.note("Containers", "This app does not make its containers public."),
    }
    page.raw("</main>\n</body>\n</html>\n");
    page.0
}

struct Page(String);

impl Page {
    fn raw(&mut self, html: &str) {
        self.0.push_str(html);
    }

    /// Text in which nothing is markup, in elements and in quoted attributes.
    fn text(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '&' => self.raw("&amp;"),
                '<' => self.raw("&lt;"),
                '>' => self.raw("&gt;"),
                '"' => self.raw("&quot;"),
                '\'' => self.raw("&#39;"),
                other => self.0.push(other),
            }
        }
    }

    fn row(&mut self, name: &str, value: impl Display) {
        self.raw("<tr><th scope=\"row\">");
        self.text(name);
        self.raw("</th><td>");
        self.text(&value.to_string());
        self.raw("</td></tr>\n");
    }

    fn link(&mut self, name: &str, url: &str) {
        self.raw("<tr><th scope=\"row\">");
        self.text(name);
        self.raw("</th><td><a href=\"");
        self.text(url);
        self.raw("\">");
        self.text(url);
        self.raw("</a></td></tr>\n");
    }

    fn note(&mut self, title: &str, note: &str) {
        self.raw("<h2>");
        self.text(title);
        self.raw("</h2>\n<p>");
        self.text(note);
        self.raw("</p>\n");
    }

    fn identity(&mut self, app: &App, addresses: &[String]) {
        self.raw("<table>\n<caption>Identity</caption>\n<tbody>\n");
        self.row("App ID", or_none(&app.app_id));
        self.row("Instance ID", or_none(&app.instance_id));
        self.row("Compose hash", or_none(&app.compose_hash));
        addresses.iter().for_each(|url| self.link("Address", url));
        self.row("Logs", if app.public_logs { "public" } else { "private" });
        self.raw("</tbody>\n</table>\n");
    }

    fn trust(&mut self, trust: &Trust) {
        self.raw("<table>\n<caption>Trust</caption>\n<tbody>\n");
        self.row("Platform", platform(trust.realm.as_ref()));
        self.row("Key provider", provider(trust.provider));
        if let Some(measured) = &trust.measured {
            self.row("Image", hex::encode(&measured.os_image_hash));
            measured.registers.iter().for_each(|(name, value)| self.row(&name.to_uppercase(), value));
        }
        self.raw("</tbody>\n</table>\n");
        match &trust.measured {
            Some(measured) => self.block("Measurements and event log", &measured.tcb_info),
            None => self.note("Measurements", "There are none, or this app does not make them public."),
        }
        if !trust.certificate.is_empty() {
            self.block("App certificate", &trust.certificate);
        }
    }

    /// A text as it is, behind its title.
    fn block(&mut self, title: &str, text: &str) {
        self.raw("<details><summary>");
        self.text(title);
        self.raw("</summary>\n<pre tabindex=\"0\">");
        self.text(text);
        self.raw("</pre></details>\n");
    }

    fn system(&mut self, info: &SysInfo) {
        self.raw("<table>\n<caption>System</caption>\n<tbody>\n");
        self.row("Operating system", format!("{} {}", info.os_name, info.os_version));
        self.row("Kernel", &info.kernel_version);
        self.row("Processors", format!("{} × {}", info.num_cpus, or_none(&info.cpu_model)));
        self.row("Memory", share(info.used_memory, info.total_memory));
        self.row("Swap", share(info.used_swap, info.total_swap));
        let load = [info.loadavg_one, info.loadavg_five, info.loadavg_fifteen].map(decimal);
        self.row("Load", load.join(" "));
        self.row("Uptime", duration(info.uptime));
        for disk in &info.disks {
            let used = disk.total_size.saturating_sub(disk.free_size);
            self.row(&format!("Disk {}", disk.mount_point), share(used, disk.total_size));
        }
        self.raw("</tbody>\n</table>\n");
    }

    fn containers(&mut self, containers: &[Container], logs: bool) {
        if containers.is_empty() {
            self.note("Containers", "There are no containers.");
            return;
        }
        self.raw("<table>\n<caption>Containers</caption>\n<thead><tr><th scope=\"col\">Name</th>");
        self.raw("<th scope=\"col\">Image</th><th scope=\"col\">Status</th>");
        self.raw(if logs { "<th scope=\"col\">Logs</th></tr></thead>\n" } else { "</tr></thead>\n" });
        self.raw("<tbody>\n");
        containers.iter().for_each(|c| self.container(c, logs));
        self.raw("</tbody>\n</table>\n");
    }

    fn container(&mut self, container: &Container, logs: bool) {
        let name = docker::display_name(container);
        self.raw("<tr><th scope=\"row\">");
        self.text(name);
        self.raw("</th><td>");
        self.text(&container.image);
        self.raw("</td><td>");
        self.text(&container.status);
        self.raw("</td>");
        match (logs, names::checked(name)) {
            (false, _) => {}
            (true, Err(_)) => self.raw("<td></td>"),
            // A checked name needs no escaping in a URL.
            (true, Ok(name)) => {
                let query = "text&amp;bare&amp;timestamps&amp;follow&amp;tail=20";
                let _ = write!(
                    self.0,
                    "<td><a href=\"logs/{name}?{query}\" aria-label=\"Logs of {name}\">follow</a> \
                     <a href=\"logs/{name}?text&amp;bare&amp;timestamps\" aria-label=\"Recent logs of {name}\">recent</a></td>"
                );
            }
        }
        self.raw("</tr>\n");
    }
}

/// The TEE in words; a simulated one is never taken for a real one.
fn platform(realm: Option<&Label>) -> String {
    match realm {
        Some(Label::Intel) => "Intel TDX".to_owned(),
        Some(test @ Label::Test(_)) => format!("SIMULATED ({test}): nothing is protected from the host"),
        None => "not attested".to_owned(),
    }
}

fn provider(provider: &str) -> &str {
    match provider {
        "kms" => "key service",
        "none" => "none: keys and data of this boot end with it",
        _ => "–",
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "–" } else { text }
}

fn decimal(hundredths: u32) -> String {
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

fn share(used: u64, total: u64) -> String {
    const MIB: u64 = 1024 * 1024;
    if total == 0 { "none".to_owned() } else { format!("{} of {} MiB", used / MIB, total / MIB) }
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes}m {}s", seconds % 60),
        (0, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h {minutes}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(app: &App, containers: &[Container]) -> String {
        let info = SysInfo { uptime: 3700, loadavg_one: 125, ..SysInfo::default() };
        render(&View {
            app,
            addresses: &[],
            sysinfo: Some(&info),
            containers: Some(Ok(containers)),
            trust: Trust::default(),
        })
    }

    #[test]
    fn nothing_of_the_app_becomes_markup() {
        let app = App { name: "<b>\"&'".into(), public_logs: true, ..App::default() };
        let evil =
            Container { names: vec!["/<script>".into()], image: "\"><img>".into(), ..Container::default() };
        let page = view(&app, &[evil]);
        assert!(page.contains("<title>&lt;b&gt;&quot;&amp;&#39;</title>"), "{page}");
        assert!(!page.contains("<script") && !page.contains("<img") && !page.contains("logs/<"));
    }

    #[test]
    fn links_to_logs_only_when_public() {
        let web = Container { names: vec!["/app-web-1".into()], status: "Up".into(), ..Container::default() };
        let link = "href=\"logs/app-web-1?text&amp;bare&amp;timestamps&amp;follow&amp;tail=20\"";
        let mut app = App { public_logs: true, ..App::default() };
        assert!(view(&app, std::slice::from_ref(&web)).contains(link));
        app.public_logs = false;
        assert!(!view(&app, &[web]).contains("href=\"logs/"));
        let page = render(&View {
            app: &app,
            addresses: &[],
            sysinfo: None,
            containers: None,
            trust: Trust::default(),
        });
        assert!(page.contains("does not make its containers public") && !page.contains("Uptime"));
    }

    #[test]
    fn addresses_are_links() {
        let addresses = ["https://a.apps.test/".to_owned()];
        let (app, trust) = (App::default(), Trust::default());
        let page = render(&View { app: &app, addresses: &addresses, sysinfo: None, containers: None, trust });
        assert!(page.contains("<a href=\"https://a.apps.test/\">https://a.apps.test/</a>"), "{page}");
        assert!(!view(&app, &[]).contains("Address"));
    }

    #[test]
    fn p17_a_simulated_tee_is_said_in_capitals() {
        let shown = |realm| {
            let trust = Trust { provider: "none", realm, certificate: "<x>".into(), ..Trust::default() };
            render(&View { app: &App::default(), addresses: &[], sysinfo: None, containers: None, trust })
        };
        let page = shown(Some(Label::Test("0123456789abcdef".into())));
        assert!(page.contains("SIMULATED (test:0123456789abcdef): nothing is protected"), "{page}");
        assert!(page.contains("end with it") && page.contains("&lt;x&gt;"), "{page}");
        assert!(shown(Some(Label::Intel)).contains("Intel TDX"));
        assert!(shown(None).contains("not attested"));
    }

    #[test]
    fn figures_for_people() {
        assert_eq!([59, 3700, 90061].map(duration), ["0m 59s", "1h 1m", "1d 1h 1m"]);
        assert_eq!((decimal(5), share(0, 0).as_str()), ("0.05".into(), "none"));
        assert_eq!(share(1 << 20, 1 << 21), "1 of 2 MiB");
    }
}
