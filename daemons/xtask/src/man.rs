// SPDX-License-Identifier: Apache-2.0
//! Man pages: dstackctl's from its command-line types, the D-Bus pages from the XML; the others are files in `man/`.

use crate::{Result, dbus_page, introspection, put, read};
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use dstackctl::cli::Cli;
use std::path::Path;

/// Bus names with a page, which is `man/<name>.5.in`, and the interfaces it describes.
const BUSES: [(&str, &[&str]); 6] = [
    ("org.dstack.certbot1", &["Manager", "Job"]),
    ("org.dstack.ctmonitor1", &["Manager", "Job"]),
    ("org.dstack.kms1", &["Manager"]),
    ("org.dstack.tappd1", &["Manager"]),
    ("org.dstack.teepod1", &["Manager", "Vm", "Job"]),
    ("org.dstack.tproxy1", &["Manager"]),
];

/// Writes all generated pages below `out`, which is `/usr/share/man` of the package; `root` is the source tree.
pub fn write(root: &Path, out: &Path) -> Result<()> {
    let mut command = Cli::command();
    command.build();
    let more = read(&root.join("man/dstackctl.1.in"))?;
    pages(&command, "dstackctl", &more, out)?;
    for (bus, interfaces) in BUSES {
        put(out.join(format!("man5/{bus}.5")), bus_page(root, bus, interfaces)?.as_bytes())?;
    }
    Ok(())
}

fn bus_page(root: &Path, bus: &str, interfaces: &[&str]) -> Result<String> {
    let mut described = Vec::new();
    for interface in interfaces {
        let xml = read(&root.join(format!("dbus/interfaces/{bus}.{interface}.xml")))?;
        described.extend(introspection::parse(&xml));
    }
    let page = read(&root.join(format!("man/{bus}.5.in")))?;
    dbus_page::fill(&page, &described).map_err(|e| format!("man/{bus}.5.in: {e}"))
}

/// The page of a command and those of its subcommands; `more` is for the first.
fn pages(command: &Command, name: &str, more: &str, out: &Path) -> Result<()> {
    let text = page(command, name, more).map_err(|e| format!("cannot write the page {name}: {e}"))?;
    put(out.join(format!("man1/{name}.1")), &text)?;
    for sub in command.get_subcommands().filter(|s| !s.is_hide_set()) {
        pages(sub, &format!("{name}-{}", sub.get_name()), "", out)?;
    }
    Ok(())
}

fn page(command: &Command, name: &str, more: &str) -> std::io::Result<Vec<u8>> {
    let man =
        Man::new(command.clone()).title(name.to_uppercase()).section("1").source("dstack").manual("dstack");
    let mut text = b".\\\" SPDX-License-Identifier: Apache-2.0\n".to_vec();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    if more.is_empty() {
        if command.get_after_help().is_some() {
            man.render_extra_section(&mut text)?;
        }
        text.extend(b".SH SEE ALSO\n.BR dstackctl (1)\n");
    } else {
        text.extend(more.as_bytes());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pages_are_written_and_well_formed() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let out = tempfile::tempdir().unwrap();
        write(&root, out.path()).unwrap();
        let names = [
            "man1/dstackctl.1",
            "man1/dstackctl-init.1",
            "man1/dstackctl-vm-resize.1",
            "man5/org.dstack.ctmonitor1.5",
            "man5/org.dstack.kms1.5",
            "man5/org.dstack.teepod1.5",
            "man5/org.dstack.tappd1.5",
            "man5/org.dstack.tproxy1.5",
        ];
        for name in names {
            let text = std::fs::read_to_string(out.path().join(name)).unwrap();
            for part in [".TH", ".SH NAME", ".SH SYNOPSIS", ".SH SEE ALSO"] {
                assert!(text.contains(part), "{name} has no {part}");
            }
        }
        let main = std::fs::read_to_string(out.path().join("man1/dstackctl.1")).unwrap();
        assert!(main.contains("EXIT STATUS") && main.contains("dstackctl\\-deploy(1)"), "{main}");
    }

    #[test]
    fn every_man_page_file_names_itself() {
        let man = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../man");
        for entry in std::fs::read_dir(man).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.ends_with(".in") || text.starts_with(".so ") {
                continue;
            }
            let (stem, section) = name.rsplit_once('.').unwrap();
            let title = format!(".TH {} {section} ", stem.to_uppercase());
            assert!(text.contains(&title), "{name} has no {title:?}");
            assert!(text.contains(".SH SEE ALSO"), "{name}");
        }
    }
}
