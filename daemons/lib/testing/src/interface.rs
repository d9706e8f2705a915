// SPDX-License-Identifier: Apache-2.0
//! What is asked of every daemon's D-Bus interfaces: the shipped XML, bus policy and polkit actions are the daemon's.

use std::path::{Path, PathBuf};

/// One daemon on the bus.
#[derive(Debug)]
pub struct Service<'a> {
    /// Its bus name, as `org.dstack.kms1`.
    pub name: &'a str,
    /// The user it runs as, who owns its polkit actions.
    pub user: &'a str,
    /// Its polkit actions.
    pub actions: &'a [&'a str],
    /// Its interfaces: the last part of the name, and the XML of an object that has it.
    pub interfaces: Vec<(&'a str, String)>,
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(name)
}

fn read(name: &str) -> String {
    let path = file(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Service<'_> {
    /// Asks all of it. With `DSTACK_WRITE_XML=1` the files with the XML are written instead of compared.
    ///
    /// # Panics
    /// Where something differs.
    pub fn check(&self) {
        self.check_xml();
        self.check_policy();
        self.check_actions();
    }

    fn check_xml(&self) {
        for (interface, xml) in &self.interfaces {
            let name = format!("dbus/interfaces/{}.{interface}.xml", self.name);
            let xml = format!("{xml}\n");
            if std::env::var_os("DSTACK_WRITE_XML").is_some() {
                std::fs::write(file(&name), &xml).unwrap();
            }
            assert_eq!(
                read(&name),
                xml,
                "{name} is not what the daemon says; write it with DSTACK_WRITE_XML=1"
            );
        }
    }

    /// The bus policy names every method, and no other.
    fn check_policy(&self) {
        let policy = read(&format!("dbus/{}.conf", self.name));
        let mut count = 0;
        for (interface, xml) in &self.interfaces {
            for method in xml.split("<method name=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                let line = format!("send_interface=\"{}.{interface}\" send_member=\"{method}\"", self.name);
                assert!(policy.contains(&line), "the bus policy lacks {line}");
                count += 1;
            }
        }
        let named = policy.matches(&format!("send_interface=\"{}.", self.name)).count();
        assert_eq!(named, count, "methods in the bus policy of {}, and in its interfaces", self.name);
    }

    /// polkit knows every action, and no other, and lets the daemon ask.
    fn check_actions(&self) {
        let text = read(&format!("polkit/{}.policy", self.name));
        for action in self.actions {
            assert!(text.contains(&format!("<action id=\"{action}\">")), "polkit's file lacks {action}");
        }
        let owner =
            format!("<annotate key=\"org.freedesktop.policykit.owner\">unix-user:{}</annotate>", self.user);
        for what in ["<action id=", &owner] {
            assert_eq!(
                text.matches(what).count(),
                self.actions.len(),
                "{what} in {}'s polkit file",
                self.name
            );
        }
    }
}
